"""Load a masked language model and its tokenizer, by name or from a folder."""

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoModelForMaskedLM, AutoTokenizer

from maskft.cli.messages import UsageError, say


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model.

    Raises:
        UsageError: there is none, or it has no mask token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("tokenizer", name, error) from None
    if tokenizer.mask_token_id is None:
        raise UsageError(
            f"the tokenizer of {name} has no mask token, so nothing can be masked; "
            "choose a masked language model (BERT, RoBERTa, ModernBERT, ESM...)"
        )
    return tokenizer


def load(name: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load (model, tokenizer), and say so if the checkpoint has no masked-language-model head.

    Raises:
        UsageError: the model or its tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(name, trust_remote_code)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report of a fresh head is a page long
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(
            name, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("model", name, error) from None
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
    if fresh := sorted(info["missing_keys"]):
        say(
            f"{name} has no weights for {len(fresh)} tensors of {type(model).__name__} "
            f"({fresh[0]}...): they start fresh"
        )
    size = model.get_input_embeddings().weight.shape[0]
    if size < len(tokenizer):
        raise UsageError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, the model embeds {size}"
        )
    return model, tokenizer


def _cannot_load(what: str, name: str, error: Exception) -> UsageError:
    if name.startswith(("/", ".", "~")) and not Path(name).expanduser().exists():
        return UsageError(f"no such model folder: {name}")
    reason = " ".join(str(error).split())
    return UsageError(f"cannot load a {what} from {name!r}: {reason[:300]}")
