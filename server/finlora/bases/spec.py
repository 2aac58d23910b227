"""What an adapter must fit: the facts of one base model. No torch, no model files."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

SPEC_FILE = "base.json"


@dataclass(frozen=True, slots=True)
class LinearShape:
    """Sizes of one linear layer of the decoder."""

    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """Identity and shapes of a base; the same for every quantisation of the same weights."""

    name: str
    architecture: str
    fingerprint: str  # SHA-256 over names, types, shapes and bytes of the 16-bit source tensors
    tokenizer_hash: str  # SHA-256 of tokenizer.json
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    linear_layers: dict[str, LinearShape]  # "model.layers.0.self_attn.q_proj" -> sizes

    def save(self, folder: Path) -> None:
        """Write `base.json` into the folder."""
        (folder / SPEC_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "BaseSpec":
        """Read `base.json`. Raises OSError or ValueError when it is missing or malformed."""
        fields = json.loads((folder / SPEC_FILE).read_text("utf-8"))
        fields["eos_token_ids"] = tuple(fields["eos_token_ids"])
        layers = fields["linear_layers"].items()
        fields["linear_layers"] = {name: LinearShape(**shape) for name, shape in layers}
        return cls(**fields)
