"""What a function's head says of its parameters."""

import re

from tree_sitter import Node

from puna.safety.shield.tree import children, text_of

_HARMLESS_TYPE = (
    r"(?:u?int(?:16|32|64)?|[ui]?long|short|byte|Integer|Long|Short|Boolean|Double|Float|bool|boolean|float"
    r"|double|decimal|number|(?:uuid\.)?UUID|Guid|(?:datetime\.)?(?:date|datetime)|DateTime|DateOnly"
    r"|DateTimeOffset|DateTimeInterface|LocalDate|LocalDateTime|Instant|Decimal|BigDecimal|BigInteger)"
)


def names_parameter(function: Node, name: str) -> bool:
    """Whether a function's head names this parameter."""
    function = function.child_by_field_name("definition") or function
    body = function.child_by_field_name("body")
    end = body.start_byte if body else function.end_byte
    head = (function.text or b"")[: end - function.start_byte]
    return re.search(rb"(?<![\w$])" + re.escape(name.encode()) + rb"(?!\w)", head) is not None


def has_harmless_type(function: Node, name: str) -> bool:
    """Whether a function's head, or its route, says that a parameter is a number or the like."""
    function = function.child_by_field_name("definition") or function
    own, above = re.escape(name), function.parent
    if above is not None and above.type == "decorated_definition":
        routes = (above.text or b"")[: function.start_byte - above.start_byte]
        if re.search(rf"<(?:int|float|uuid):{own}>", routes.decode("utf-8", "replace")):
            return True
    parameters = function.child_by_field_name("parameters")
    nothing = r"(?:None|null|undefined)"
    types = rf"(?:{_HARMLESS_TYPE}|{nothing})(?:\s*\|\s*(?:{_HARMLESS_TYPE}|{nothing}))*"
    typed = re.compile(
        rf"(?:(?:\[[^\]]*\]|@\w+(?:\([^()]*\))?|final|readonly|params|private|public)\s*)*"
        rf"(?:\??{types}\??\s+(?:\.\.\.)?{own}|{own}\??\s*:\s*{types})\s*(?:=.*)?",
        re.DOTALL,
    )
    inner = children(parameters) if parameters is not None else []
    return any(typed.fullmatch(text_of(each).strip()) for each in inner)
