"""A training step whose shapes never change: compiled once, never again, over varied batches.

    python examples/static_shapes.py                  # rows padded to one length
    python examples/static_shapes.py --layout packed  # rows end to end in blocks of one size
    python examples/static_shapes.py --capture        # on a GPU: a CUDA graph instead

An exact budget bounds what is predicted, and the places of it come in a buffer of fixed size. So
head and loss (maskft.fuse_loss) see the same number of rows every time, and torch is told to raise
rather than compile again. Masking stays in the loader: the epoch is a number, and a new one would
be a new graph.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import maskft

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY, RATE = 500, 0.15
LENGTH, ROWS = 64, 16  # padded: tokens in every row, rows in every batch
BLOCK, MOST_ROWS = 512, 96  # packed: tokens in every batch, and rows at most
# Each row predicts round(RATE * its ordinary tokens), which adds at most half a token a row.
CAPACITY = {"padded": int(RATE * LENGTH + 0.5), "packed": int(RATE * BLOCK + MOST_ROWS / 2)}


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = [*SPECIAL, *(f"w{i}" for i in range(VOCABULARY - len(SPECIAL)))]
    words = models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), **dict(zip(names, SPECIAL, strict=True))
    )


def make_rows(count: int) -> list[dict[str, list[int]]]:
    """Rows of 8 to LENGTH tokens, each a run of consecutive ids: something to learn."""
    generator = torch.Generator().manual_seed(0)
    first, words = len(SPECIAL), VOCABULARY - len(SPECIAL)
    rows = []
    for _ in range(count):
        n, start = (
            int(torch.randint(a, b, (), generator=generator))
            for a, b in ((6, LENGTH - 1), (0, words))
        )
        rows.append({"input_ids": [2, *(first + (start + i) % words for i in range(n)), 3]})
    return rows


def make_model(**config: Any) -> BertForMaskedLM:
    torch.manual_seed(0)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=128, max_position_embeddings=128, **config,
        )
    )  # fmt: skip


def make_loader(layout: str, rows: list[Any], model: BertForMaskedLM) -> tuple[DataLoader, Any]:
    """(loader of batches of one shape, what to tell the epoch)."""
    tokenizer = make_tokenizer()
    options: dict[str, Any] = {
        "rng": "sample", "seed": 1, "mlm_probability": RATE, "selection": "budget",
        "label_positions": CAPACITY[layout],
    }  # fmt: skip
    if layout == "padded":
        collator = maskft.DataCollatorForLanguageModeling(
            tokenizer, pad_to_multiple_of=LENGTH, **options
        )
        loader = DataLoader(rows, ROWS, shuffle=True, drop_last=True, collate_fn=collator)
        return loader, collator
    packing = maskft.DataCollatorWithPacking.for_model(
        model, tokenizer, total_length=BLOCK, **options
    )
    lengths = [len(row["input_ids"]) for row in rows]
    sampler = maskft.PackedBatchSampler(lengths, BLOCK, seed=1)
    return DataLoader(rows, batch_sampler=sampler, collate_fn=packing), packing


def make_step(model: BertForMaskedLM) -> Callable[..., Tensor]:
    """Forward, loss and backward in one function; the gradients stay in the same memory."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = torch.zeros_like(p)

    def step(batch: dict[str, Tensor]) -> Tensor:
        for p in parameters:
            p.grad.zero_()
        loss = model(**batch).loss
        loss.backward()
        return loss.detach()

    return step


def compiled(step: Callable[..., Tensor], backend: str = "inductor") -> Callable[..., Tensor]:
    """The step as one graph: not even ``backward`` breaks it."""
    return torch.compile(step, backend=backend, fullgraph=True, dynamic=False)


def captured(step: Callable[..., Tensor], batch: dict[str, Tensor]) -> Callable[..., Tensor]:
    """The step as a CUDA graph, which is replayed on what is copied into its inputs."""
    inputs = {name: value.clone() for name, value in batch.items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # the first calls compile kernels and look at what comes out
            step(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(inputs)

    def replay(batch: dict[str, Tensor]) -> Tensor:
        for name, value in batch.items():
            inputs[name].copy_(value, non_blocking=True)
        graph.replay()
        return loss.clone()

    return replay


def main(argv: list[str] | None = None) -> list[float]:
    """Train and return the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layout", choices=list(CAPACITY), default="padded")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--capture", action="store_true", help="capture a CUDA graph instead")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args(argv)
    device = "cuda" if args.capture else "cpu"
    model = maskft.fuse_loss(make_model().to(device))
    loader, masking = make_loader(args.layout, make_rows(args.rows), model)
    rate = torch.tensor(2e-3, device=device)  # a number would be compiled into the step
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, capturable=args.capture)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = make_step(model)
    update = torch.compile(lambda: optimizer.step(), backend=args.backend, dynamic=False)
    if args.capture:
        first = {name: value.to(device) for name, value in next(iter(loader)).items()}
        step, update = captured(step, first), optimizer.step
    else:
        step = compiled(step, args.backend)
    losses, lengths, labels = [], set(), set()
    with torch._dynamo.config.patch(error_on_recompile=True, trace_autograd_ops=True):
        for epoch in range(args.epochs):
            masking.set_epoch(epoch)
            if args.layout == "packed":
                loader.batch_sampler.set_epoch(epoch)
            for batch in loader:
                losses.append(step(batch).item())
                update()
                lengths.add(int((batch["input_ids"] != 0).sum()))
                labels.add(int((batch["label_positions"] >= 0).sum()))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    how = "captured once" if args.capture else f"{graphs} graphs (step, optimizer) compiled once"
    print(
        f"{len(losses)} steps over {len(lengths)} numbers of tokens and {len(labels)} of labels, "
        f"{how}: loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    )
    return losses


if __name__ == "__main__":
    main()
