"""A checkpoint's tokenizer as transformers and serving engines read it: tokenizer.json, tokenizer_config.json and the chat template."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1mega.config import TemplateConfig
from r1mega.data.released_template import CONFIG, JINJA, LEGACY, Conversation, conversation_of, read_source
from r1mega.errors import UserError
from r1mega.policy.hugging_face.chat_template import chat_template
from r1mega.recipe import files

if TYPE_CHECKING:
    from r1mega.hookspecs import Tokenizer

JSON, MAP, MODEL = "tokenizer.json", "special_tokens_map.json", "tokenizer.model"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's inner name for a space
_SAMPLES = 300  # random texts on which a converted tokenizer must agree with its original


def write_tokenizer(source: Path, tokenizer: Tokenizer, template: TemplateConfig | None, folder: Path) -> str:
    """Put the tokenizer of a checkpoint's folder `source` into `folder` and return what is missing for transformers to use it, or "".

    A Hugging Face tokenizer's files are copied. A SentencePiece model is converted if that is exact, as far as random texts in its own pieces, in
    characters it does not know, and in Chinese tell; the model itself is there in any case. Only the text of U+2581 (with bytes for unknown characters)
    and that of the end-of-sequence token encode differently: the latter is the token itself, as chat templates need it. The end-of-sequence
    token is the recipe's, and so is the chat template: the source's own file where the recipe's template was read from it, else one made of its strings;
    with `template` None whatever the source has.
    """
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    problem = ""
    if (source / JSON).is_file():
        files.write_bytes(folder / JSON, (source / JSON).read_bytes())
        config |= files.read_json(source / CONFIG) if (source / CONFIG).is_file() else {}
        from tokenizers import Tokenizer as Whole

        ids = {int(token): text for text, token in Whole.from_file(str(source / JSON)).get_vocab(with_added_tokens=True).items()}
        if tokenizer.eos_id not in ids:
            raise UserError(f"{source / JSON} has no token {tokenizer.eos_id}, which is stated as the end of sequence; set tokenizer.eos_token")
        config["eos_token"] = ids[tokenizer.eos_id]
        stated = files.read_object(source / MAP).get("eos_token") if (source / MAP).is_file() else None
        if (stated.get("content") if isinstance(stated, dict) else stated) == config["eos_token"]:
            files.write_bytes(folder / MAP, (source / MAP).read_bytes())
    elif (source / MODEL).is_file():
        files.write_bytes(folder / MODEL, (source / MODEL).read_bytes())
        converted, problem = _convert(source / MODEL, tokenizer)
        if problem:
            return f"{MODEL} without {JSON}: {problem}"
        files.write_text(folder / JSON, converted.to_str(pretty=True))
        config["eos_token"] = config["pad_token"] = converted.id_to_token(tokenizer.eos_id)
    else:
        for path in sorted(source.iterdir()):
            files.write_bytes(folder / path.name, path.read_bytes())
        return f"its own files only: neither {JSON} nor {MODEL} is among them"
    _write_chat_template(Path(template.path).parent if template and template.path else source, template, config, folder)
    return ""


def _write_chat_template(origin: Path, template: TemplateConfig | None, config: dict[str, Any], folder: Path) -> None:
    """tokenizer_config.json, with the chat template of the folder `origin` as it is where it says what the recipe's template says, else with the recipe's."""
    stated = files.read_json(origin / CONFIG).get("chat_template") if (origin / CONFIG).is_file() else None
    own = [name for name in (JINJA, LEGACY) if (origin / name).is_file()]
    for name in own:
        files.write_bytes(folder / name, (origin / name).read_bytes())
    _write_config(config, stated, folder)
    if template is not None and not _says(folder, template):
        for name in own:
            (folder / name).unlink()
        made = chat_template(template)
        files.write_text(folder / JINJA, made)
        _write_config(config, made, folder)  # here for older readers, in a file for newer ones


def _write_config(config: dict[str, Any], stated: Any, folder: Path) -> None:
    content = {key: value for key, value in config.items() if key != "chat_template"} | ({"chat_template": stated} if stated else {})
    files.write_text(folder / CONFIG, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _says(folder: Path, template: TemplateConfig) -> bool:
    """Whether the folder's chat template, with the special tokens beside it, is the recipe's template."""
    try:
        found = conversation_of(read_source(folder), keep_opening="<think>" not in template.response)
    except UserError:  # there is none, or strings cannot express it
        return False
    return found == Conversation(template.prompt, template.turn, template.system)


def _convert(path: Path, tokenizer: Tokenizer) -> tuple[Any, str]:
    """(a tokenizers.Tokenizer, "") or (None, why there is none)."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto.FromString(path.read_bytes())
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    if trainer.model_type not in (proto.TrainerSpec.BPE, proto.TrainerSpec.CHAR):
        return None, f"its model type is {proto.TrainerSpec.ModelType.Name(trainer.model_type)}; BPE and CHAR can be converted exactly"
    if normalizer.precompiled_charsmap or normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces or trainer.treat_whitespace_as_suffix:
        return None, "it changes texts before encoding them"
    converted = _byte_pairs(model, proto.ModelProto.SentencePiece, tokenizer.eos_id, merges=trainer.model_type == proto.TrainerSpec.BPE)
    for text in _texts([piece.piece for piece in model.pieces], converted.id_to_token(tokenizer.eos_id)):
        if converted.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            return None, f"the converted one encodes {text!r} differently"
    return converted, ""


def _byte_pairs(model: Any, kinds: Any, eos_id: int, *, merges: bool) -> Any:
    """SentencePiece joins the pair that makes the piece of the best score, the leftmost of equals; so does a list of all pairs in that order."""
    import tokenizers as library

    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    vocabulary = {text: place for place, (text, _, _) in enumerate(pieces)}
    normal = {text: score for text, score, kind in pieces if kind == kinds.NORMAL}
    pairs = [(-score, cut, text) for text, score in normal.items() for cut in range(1, len(text))
             if text[:cut] in normal and text[cut:] in normal] if merges else []
    unknown = next(text for text, _, kind in pieces if kind == kinds.UNKNOWN)
    found = library.Tokenizer(library.models.BPE(vocabulary, [(text[:cut], text[cut:]) for _, cut, text in sorted(pairs)], unk_token=unknown,
                                                 fuse_unk=True, byte_fallback=any(kind == kinds.BYTE for _, _, kind in pieces)))
    found.normalizer = library.normalizers.Replace(" ", SPACE)
    found.decoder = library.decoders.Sequence([library.decoders.Replace(SPACE, " "), library.decoders.ByteFallback(), library.decoders.Fuse()])
    found.add_tokens([library.AddedToken(text, normalized=False, special=False) for text, _, kind in pieces if kind == kinds.USER_DEFINED])
    found.add_special_tokens([library.AddedToken(pieces[eos_id][0], normalized=False, special=True)])
    return found


def _texts(pieces: list[str], eos: str) -> Iterator[str]:
    """Random texts, the same every time: of pieces, of their characters, of Chinese and of anything that Unicode has, mixed."""
    draw = random.Random(0)
    characters = sorted({character for piece in pieces for character in piece})
    anything = [chr(code) for code in (*range(0x20, 0x7f), 0xe9, 0x3b1, 0x416, 0x5d0, 0x627, 0x1f600, 0x1f1e9, 0x200d, 0x0, 0x9, 0xa, 0xd)]
    chinese = [chr(code) for code in range(0x4e00, 0x4f00)] + list("，。？！：；（）的是在有和数字")
    sources = [pieces, characters, anything, chinese, [" ", "  ", "\n"]]
    for _ in range(_SAMPLES):
        weights = [draw.random() for _ in sources]
        text = "".join(draw.choice(source) for source in draw.choices(sources, weights, k=draw.randint(1, 40))).replace(SPACE, " ")
        yield text.replace(eos, "")
