"""How the text encoder of a system read a prompt."""

from models.encoders.text import TextEncoder
from orchestration.data.features import Encoder, check_encodable
from orchestration.data.vocabulary import words
from orchestration.data.word_encoder import WordEncoder
from orchestration.reasons.schema import PromptReasons, ReadWord


def prompt_reasons(encoder: Encoder, prompt: str) -> PromptReasons:
    """The prompt's words as the encoder parts them. Raises RequestError for a prompt that it cannot read."""
    check_encodable([prompt])
    if isinstance(encoder, WordEncoder):
        return _by_vocabulary(encoder, prompt)
    if isinstance(encoder, TextEncoder):
        return _by_pieces(encoder, prompt)
    return PromptReasons(words=[ReadWord(word=word, known=True) for word in prompt.split()])


def _by_vocabulary(encoder: WordEncoder, prompt: str) -> PromptReasons:
    """Unknown words are read over and take no room; the first `longest` known ones are read."""
    encoder.vocabulary.tokens([prompt], encoder.longest)  # refuses what drawing refuses
    unknown, left = set(encoder.vocabulary.unknown(prompt)), encoder.longest
    read: list[ReadWord] = []
    said = words(prompt)
    for place, word in enumerate(said):
        if not left:
            return PromptReasons(words=read, unread=list(said[place:]))
        read.append(ReadWord(word=word, known=word not in unknown))
        left -= word not in unknown
    return PromptReasons(words=read)


def _by_pieces(encoder: TextEncoder, prompt: str) -> PromptReasons:
    """A word is a run of pieces; one that has no pieces stands as the mark for unknown words."""
    tokenizer = encoder.tokenizer
    # As the encoder asks it: a tokenizer keeps how it was asked last, and may be drawing in another thread.
    asked = {"padding": "max_length", "truncation": True, "max_length": encoder.settings.max_tokens}
    [pieces] = tokenizer([prompt], **asked).encodings
    read: list[ReadWord] = []
    before, end = None, 0
    for number, word, (start, stop) in zip(pieces.ids, pieces.word_ids, pieces.offsets, strict=True):
        if word is None:
            continue
        known = number != tokenizer.unk_token_id
        if word == before:
            last = read.pop()
            read.append(ReadWord(word=last.word + prompt[end:stop], known=last.known and known))
        else:
            read.append(ReadWord(word=prompt[start:stop], known=known))
        before, end = word, stop
    return PromptReasons(words=read, unread=prompt[end:].split() if pieces.overflowing else [])
