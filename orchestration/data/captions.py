"""What can be wrong with the text of one caption, whatever data set it is of."""

from orchestration.data.problems import Kind, Notice, Problem

LONGEST = 100  # words; more than any caption of MS-COCO or CUB, and than nearly every narrative
_SHOWN = 40


def caption_problem(text: str) -> Kind | None:
    """CAPTION_EMPTY (a fault), CAPTION_ONE_WORD or CAPTION_LONG (remarks), or None. Words are told by whitespace."""
    stripped = text.strip()
    if " " in stripped and len(stripped) < 2 * LONGEST:  # quick: such a text has 2 to 100 words
        return None
    words = len(stripped.split())
    if words == 0:
        return Kind.CAPTION_EMPTY
    if words == 1:
        return Kind.CAPTION_ONE_WORD
    return Kind.CAPTION_LONG if words > LONGEST else None


def checked_caption(text: str, where: str, notice: Notice) -> bool:
    """Whether the caption can be used; `where` names it, e.g. "FILE: caption 3 of image 7". Tells `notice` the rest.

    Raises what `notice` raises.
    """
    kind = caption_problem(text)
    if kind is None:
        return True
    if kind is Kind.CAPTION_EMPTY:
        notice(Problem(kind, f"{where} is empty; write its text or remove it."))
    elif kind is Kind.CAPTION_ONE_WORD:
        word = text.strip()
        shown = word if len(word) <= _SHOWN else word[:_SHOWN] + "…"
        notice(Problem(kind, f"{where} is one word, {shown!r}; it is used as it is."))
    else:
        words = len(text.split())
        notice(Problem(kind, f"{where} has {words} words; models read as many of its first words as they are set to."))
    return not kind.is_fault
