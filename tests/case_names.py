"""Names of the cases of a test."""


def case_name(value: object) -> str:
    """The same in every process, or several could not share the tests: a set has its members in no order."""
    return f"{{{', '.join(sorted(map(repr, value)))}}}" if isinstance(value, set | frozenset) else str(value)
