"""TensorFlow Federated in charge of the server side.

| module | imports TensorFlow | imports TFF |
|---|---|---|
| `server_artefact`: the compiled server as a value and as files | | |
| `graph_function`, `compiled_round`, `artefact_aggregator`: run it | yes | |
| `simulation_data`: client datasets | yes | |
| all others: define it, compile it, be a context for it | yes | yes |
"""
