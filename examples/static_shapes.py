"""A training step whose shapes never change: compiled once, never again, over varied batches.

    python examples/static_shapes.py

Rows of every length are packed into blocks of one size, an exact budget bounds what is predicted,
and the positions of it come in a buffer of fixed capacity. So the compiled function meets one set
of shapes, and torch is told to raise rather than compile anew. Masking stays outside: the epoch is
a number, and a new number would be a new graph.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from maskft import PackedBatchSampler
from maskft.attention import lay_out
from maskkernels import MaskedTokens, MaskingPolicy, flatten_rows, mask_tokens

VOCABULARY, PAD, CLS, SEP, MASK = 500, 0, 1, 2, 3
BLOCK, MOST_ROWS = 256, 32  # tokens and rows in a batch, at most
POLICY = MaskingPolicy(mask_token_id=MASK, vocab_size=VOCABULARY, selection="budget")
# Each row predicts round(rate * eligible) tokens, so rounding adds at most half a token a row.
CAPACITY = int(POLICY.rate * BLOCK + MOST_ROWS / 2) + 1


def make_rows(count: int) -> list[Tensor]:
    """Rows of 8 to 100 tokens, each a run of consecutive ids: something to learn."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        n, first = (int(torch.randint(*r, (1,), generator=generator)) for r in ((6, 99), (4, 500)))
        body = 4 + (first + torch.arange(n)) % (VOCABULARY - 4)
        rows.append(torch.cat([torch.tensor([CLS]), body, torch.tensor([SEP])]))
    return rows


def masked_block(rows: list[Tensor], maskable: Tensor, epoch: int) -> tuple[MaskedTokens, dict]:
    """(masked [BLOCK], what keeps its rows apart) of rows that fit into a block."""
    flat, cu_seqlens = flatten_rows(rows)
    padding = BLOCK - flat.numel()
    ends = torch.cat([cu_seqlens, cu_seqlens.new_tensor([BLOCK])])  # padding: a row of its own
    ids = F.pad(flat, (0, padding), value=PAD)
    masked = mask_tokens(
        ids, POLICY, seed=1, epoch=epoch, cu_seqlens=ends, maskable=maskable, capacity=CAPACITY
    )
    return masked, lay_out(cu_seqlens, attention="block_diagonal", padding=padding)


def loss_of(
    model: BertForMaskedLM, ids: Tensor, labels: Tensor, positions: Tensor, told: dict
) -> Tensor:
    """Mean loss of the predicted tokens; the head sees CAPACITY rows whatever is predicted."""
    hidden = model.bert(input_ids=ids[None], **told).last_hidden_state[0]
    at = positions.clamp(min=0)
    target = torch.where(positions >= 0, labels[at], -100)
    return F.cross_entropy(model.cls(hidden[at]), target)


def main(argv: list[str] | None = None) -> list[float]:
    """Train and return the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=128,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rows = make_rows(args.rows)
    sampler = PackedBatchSampler([len(row) for row in rows], BLOCK, seed=1)
    maskable = torch.arange(VOCABULARY) >= 4
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, backend=args.backend, dynamic=False, fullgraph=True)
    losses, shapes = [], set()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for epoch in range(args.epochs):
            sampler.set_epoch(epoch)
            for batch in sampler:
                masked, told = masked_block([rows[i] for i in batch], maskable, epoch)
                loss = compiled(model, masked.input_ids, masked.labels, masked.positions, told)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                shapes.add((len(batch), int(masked.count)))
    print(
        f"{len(losses)} steps over {len({n for n, _ in shapes})} numbers of rows and "
        f"{len({n for _, n in shapes})} of predicted tokens, compiled once: "
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    )
    return losses


if __name__ == "__main__":
    main()
