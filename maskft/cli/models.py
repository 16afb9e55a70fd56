"""Load a masked language model and its tokenizer, by name or from a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from maskft.cli.messages import UsageError, say

_KINDS = (AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForCausalLM)
_MASKED_OR_CAUSAL = (AutoModelForMaskedLM, AutoModelForCausalLM)


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model.

    Raises:
        UsageError: there is none, or it has no mask token.
    """
    with _loading("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    if tokenizer.mask_token_id is None:
        raise UsageError(
            f"the tokenizer of {name} has no mask token, so nothing can be masked; "
            "choose a masked language model (BERT, RoBERTa, ModernBERT, ESM...), or add one with "
            "tokenizer.add_special_tokens({'mask_token': '[MASK]'}), and its row in the model with "
            "model.resize_token_embeddings(len(tokenizer)), and save both"
        )
    return tokenizer


def load(name: str, trust_remote_code: bool = False, *, causal: bool = False) -> tuple[Any, Any]:
    """Load (model, tokenizer), and say so if the checkpoint has no masked-language-model head.

    Args:
        causal: whether a model that was saved with a causal head is loaded with that.

    Raises:
        UsageError: the model or its tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(name, trust_remote_code)
    auto = AutoModelForMaskedLM
    if causal:
        auto = _kind(name, _config(name, trust_remote_code), _MASKED_OR_CAUSAL)
    model, info = _with_weights(auto, name, trust_remote_code)
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


def outline(name: str, trust_remote_code: bool, weights: bool) -> Any:
    """Make the language model of that name, on the meta device unless ``weights``.

    Raises:
        UsageError: there is none.
    """
    config = _config(name, trust_remote_code)
    auto = _kind(name, config, _KINDS)
    if weights:
        return _with_weights(auto, name, trust_remote_code)[0]
    with _loading("model", name), torch.device("meta"):
        return auto.from_config(config, trust_remote_code=trust_remote_code)


def _config(name: str, trust_remote_code: bool) -> Any:
    with _loading("configuration", name):
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)


def _kind(name: str, config: Any, kinds: tuple[Any, ...]) -> Any:
    """Choose the class of automatic models that a model was saved from, of ``kinds``."""
    saved = (config.architectures or [None])[0]
    fits = [kind for kind in kinds if type(config) in kind._model_mapping]
    same = [k for k in fits if k._model_mapping[type(config)].__name__ == saved]
    own = [kind for kind in kinds if kind.__name__ in getattr(config, "auto_map", {})]
    auto = next(iter(own + same + fits), None)
    if auto is None:
        raise UsageError(
            f"{name} is a {config.model_type}, and there is no language model of that type"
        )
    return auto


def _with_weights(auto: Any, name: str, trust_remote_code: bool) -> tuple[Any, dict[str, Any]]:
    """Load (model, what was missing); refuse weights that are not of the configuration's shapes."""
    with _loading("model", name):
        model, info = auto.from_pretrained(
            name, trust_remote_code=trust_remote_code, output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )  # fmt: skip
    for key, found, wanted in sorted(info["mismatched_keys"]):
        raise UsageError(
            f"the weights of {name} do not fit its configuration: {key} is {_size(found)}, "
            f"{type(model).__name__} needs {_size(wanted)}"
        )
    return model, info


def _size(shape: Any) -> str:
    return " x ".join(map(str, shape))


@contextmanager
def _loading(what: str, name: str) -> Iterator[None]:
    """Load without Transformers' reports, which are pages long, and say in a sentence why not.

    A broken folder raises what safetensors, pickle, tokenizers or the model's own code raise.
    """
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        if name.startswith(("/", ".", "~")) and not Path(name).expanduser().exists():
            raise UsageError(f"no such model folder: {name}") from None
        kind = "" if type(error) in (OSError, ValueError) else f"{type(error).__name__}: "
        reason = " ".join(str(error).split())
        if isinstance(error, UnpicklingError):  # torch's advice is to run what the file says
            reason = "its weights are not a file of tensors"
        raise UsageError(f"cannot load a {what} from {name!r}: {kind}{reason[:300]}") from None
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def load_classifier(name: str, labels: list[str], trust_remote_code: bool = False) -> Any:
    """Load a model with a head for ``labels`` on it, fresh unless the model has one of that size.

    Raises:
        UsageError: it cannot be loaded.
    """
    with _loading("classifier", name):
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            name, trust_remote_code=trust_remote_code, ignore_mismatched_sizes=True,
            id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
        )  # fmt: skip
