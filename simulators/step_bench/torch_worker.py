"""PyTorch's training step of the same net. A program of its own: its interpreter has no project and no TensorFlow."""

import sys

import torch  # type: ignore[import-not-found]  # its own interpreter has it
from turns import serve  # type: ignore[import-not-found]  # beside this file

__all__ = ["main"]


def main(num_threads: int, batch_size: int, dropout: float, layout: str) -> None:
    """Serves steps; ``layout`` is NCHW or NHWC (channels_last)."""
    torch.manual_seed(0)
    torch.set_num_threads(num_threads)
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25 * dropout),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5 * dropout), nn.Linear(128, 10),
    )  # fmt: skip
    x, y = torch.rand(batch_size, 1, 28, 28), torch.randint(0, 10, (batch_size,))
    if layout == "NHWC":
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_of = nn.CrossEntropyLoss()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss)

    serve(step)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
