"""Tokenizers in folders: their files are read, and compared with the text encoder.

transformers makes a tokenizer of two tokens where files are missing, and every prompt then means
the same. Here every file that is needed is required, and what it says must fit the text encoder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasmith.core.errors import WeightsError
from lorasmith.models.read_json import read_json, read_text_file
from lorasmith.models.text.tokenizer import END, MAX_LENGTH, START, create_bpe_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CONFIG = "tokenizer_config.json"
WHOLE = "tokenizer.json"
PAIR = ("vocab.json", "merges.txt")
_MAX_TOKENS = 2**20
_UNSET_LENGTH = 10**15
"""transformers writes a length beyond this where none is known."""
_LEGACY_END = 2
"""Configs of CLIP before transformers 4.31 say 0, 2 and 1 for the start, the end and padding."""
_DEFAULT_PAD = 1
_END_OF_WORD = "</w>"


def missing_tokenizer_files(folder: Path) -> list[str]:
    """Return the names of the files that a tokenizer's folder lacks."""
    missing = [] if (folder / CONFIG).is_file() else [CONFIG]
    if (folder / WHOLE).is_file():
        return missing
    pair = [name for name in PAIR if not (folder / name).is_file()]
    return missing + ([WHOLE] if len(pair) == len(PAIR) else pair)


def read_tokenizer(folder: Path) -> "CLIPTokenizer":
    """Read a tokenizer from its folder.

    The vocabulary is in ``tokenizer.json``, or in ``vocab.json`` and ``merges.txt``; special tokens
    and length in ``tokenizer_config.json``. Nothing else of the files is used.

    Raises:
        WeightsError: a file is missing, damaged or cut off; it is named.
    """
    missing = missing_tokenizer_files(folder)
    if missing:
        raise WeightsError(f"{missing[0]} is missing; copy or download the whole folder again")
    config = read_json(folder, CONFIG)
    file, vocabulary, merges = _read_vocabulary(folder)
    specials = {
        name: _special_token(config, name, default)
        for name, default in (("bos", START), ("eos", END), ("pad", END), ("unk", END))
    }
    _check_vocabulary(file, vocabulary, merges, set(specials.values()))
    tokenizer = create_bpe_tokenizer(merges, vocabulary, specials, _max_length(config))
    _add_tokens(tokenizer, folder, config)
    return tokenizer


def _max_length(config: Mapping[str, Any]) -> int:
    length = config.get("model_max_length")
    if length is None:
        return MAX_LENGTH
    if not isinstance(length, int | float) or isinstance(length, bool) or not length > 2:
        shown = repr(length)[:60]
        raise WeightsError(f"{CONFIG}: model_max_length is {shown}; expected {MAX_LENGTH}")
    return MAX_LENGTH if length > _UNSET_LENGTH else int(length)


def _read_vocabulary(folder: Path) -> tuple[str, dict[str, int], list[tuple[str, str]]]:
    """Return the name of the file that was read, the tokens with their ids, and the merges."""
    if (folder / WHOLE).is_file():
        model = read_json(folder, WHOLE).get("model")
        if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
            raise WeightsError(f"{WHOLE}: is not a byte-pair tokenizer, as CLIP's")
        return WHOLE, _ids(WHOLE, model.get("vocab")), _pairs(WHOLE, model["merges"])
    lines = read_text_file(folder, PAIR[1]).split("\n")
    lines = lines[1:] if lines and lines[0].startswith("#version") else lines
    vocabulary = _ids(PAIR[0], read_json(folder, PAIR[0]))
    return PAIR[1], vocabulary, _pairs(PAIR[1], [line for line in lines if line])


def _ids(file: str, vocabulary: Any) -> dict[str, int]:
    if not isinstance(vocabulary, dict) or not 0 < len(vocabulary) <= _MAX_TOKENS:
        raise WeightsError(f"{file}: has no vocabulary")
    ids = vocabulary.values()
    if any(type(value) is not int for value in ids) or set(ids) != set(range(len(vocabulary))):
        raise WeightsError(f"{file}: the ids of its tokens are not 0 to {len(vocabulary) - 1:,}")
    return vocabulary


def _pairs(file: str, merges: list[Any]) -> list[tuple[str, str]]:
    """Return merges, which are pairs of symbols or texts with a space between two."""
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        symbols = merge.split(" ") if isinstance(merge, str) else merge
        is_pair = isinstance(symbols, list) and len(symbols) == 2
        if not is_pair or not all(isinstance(symbol, str) for symbol in symbols):
            raise WeightsError(f"{file}: {str(merge)[:60]!r} is not a merge of two symbols")
        pairs.append((symbols[0], symbols[1]))
    return pairs


def _special_token(config: Mapping[str, Any], name: str, default: str) -> str:
    value = config.get(f"{name}_token") or default
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not content:
        raise WeightsError(f"{CONFIG}: {name}_token is not a token")
    return content


def _check_vocabulary(
    file: str, vocabulary: Mapping[str, int], merges: list[tuple[str, str]], specials: set[str]
) -> None:
    """Refuse a merge list that is cut off, and special tokens that are no tokens."""
    absent = sorted(token for token in specials if token not in vocabulary)
    if absent:
        raise WeightsError(f"{file}: its vocabulary lacks the special token {absent[0]}")
    made = {first + second for first, second in merges}
    unknown = sorted(made - vocabulary.keys())
    if unknown:
        raise WeightsError(
            f"{file}: {len(unknown):,} merges make no token of its vocabulary, first {unknown[0]!r}"
        )
    simple = (token for token in vocabulary if token not in made and token not in specials)
    unmade = [token for token in simple if len(token.removesuffix(_END_OF_WORD)) > 1]
    if unmade:
        raise WeightsError(
            f"{file}: is cut off: {len(unmade):,} of {len(vocabulary):,} tokens come from none of "
            f"its {len(merges):,} merges, first {unmade[0]!r}; copy or download it again"
        )


def _add_tokens(tokenizer: "CLIPTokenizer", folder: Path, config: Mapping[str, Any]) -> None:
    """Add the tokens that were added to the tokenizer, such as those of embeddings."""
    from tokenizers import AddedToken

    added = _read_added(folder, config)
    for token_id in sorted(added):
        if added[token_id] in tokenizer.get_vocab():
            continue
        if token_id != len(tokenizer):
            raise WeightsError(f"{CONFIG}: the added token {added[token_id]!r} has a wrong id")
        tokenizer.add_tokens([AddedToken(added[token_id], normalized=True, special=False)])


def _read_added(folder: Path, config: Mapping[str, Any]) -> dict[int, str]:
    """Return added tokens by id."""
    decoder = config.get("added_tokens_decoder")
    try:
        if isinstance(decoder, dict):
            return {int(key): str(entry["content"]) for key, entry in decoder.items()}
        if (folder / WHOLE).is_file():
            entries = read_json(folder, WHOLE).get("added_tokens") or []
            return {int(entry["id"]): str(entry["content"]) for entry in entries}
        if (folder / "added_tokens.json").is_file():
            return {int(key): name for name, key in read_json(folder, "added_tokens.json").items()}
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{CONFIG}: its added tokens are damaged ({error})") from error
    return {}


def check_tokenizer_fits(tokenizer: "CLIPTokenizer", encoder: Mapping[str, Any]) -> None:
    """Compare a tokenizer with the config of its text encoder.

    Raises:
        WeightsError: another number of tokens, another end, or another length; says both.
    """
    size, vocabulary = len(tokenizer), int(encoder.get("vocab_size", 49408))
    again = "one of them is of another model, or not whole; copy or download the model again"
    if size != vocabulary:
        raise WeightsError(
            f"has {size:,} tokens, and its text encoder knows {vocabulary:,}; {again}"
        )
    length, positions = tokenizer.model_max_length, int(encoder.get("max_position_embeddings", 77))
    if length != positions:
        raise WeightsError(
            f"takes texts of {length:,} tokens, and its text encoder of {positions:,}; {again}"
        )
    if encoder.get("eos_token_id", 49407) == _LEGACY_END:
        return
    end = tokenizer.eos_token_id
    fitting = {
        "bos": (tokenizer.bos_token_id,),
        "eos": (end,),
        # The text encoder does not read this entry, so configs often keep transformers' default.
        "pad": (tokenizer.pad_token_id, end, _DEFAULT_PAD),
    }
    for name, ids in fitting.items():
        expected = encoder.get(f"{name}_token_id")
        if expected is not None and expected not in ids:
            raise WeightsError(
                f"has the {name} token {ids[0]}, and its text encoder expects {expected}; {again}"
            )
