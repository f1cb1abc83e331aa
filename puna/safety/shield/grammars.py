"""How each language writes calls, assignments, strings and functions: names of its grammar's nodes.

The engine speaks of facts (a call, a value given to a name); these tables say which nodes of which
tree-sitter grammar are such facts and where their parts are.
"""

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from tree_sitter import Language

FIRST, LAST, ALL = "#first", "#last", "#all"
"""In the place of a field's name: the first or the last named child, or all of them."""


@dataclass(frozen=True)
class Grammar:
    """Where the facts are in the trees of one grammar.

    In ``calls`` a node type maps to (callee, arguments); a callee that starts with ``=`` is the
    fixed name of a piece of syntax that acts as a call, as PHP's ``include``. Callees of ``news``
    are types: their names begin with ``new``. ``methods`` have (receiver, name, arguments).
    """

    package: str
    entry: str = "language"
    calls: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    methods: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    news: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    sets: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Node type to (target, value): assignments, keyword arguments, pairs of a dictionary."""
    members: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Node type to (object, name)."""
    functions: frozenset[str] = frozenset()
    lambdas: frozenset[str] = frozenset()
    loops: frozenset[str] = frozenset({"for_statement", "while_statement", "do_statement"})
    imports: frozenset[str] = frozenset()
    concats: frozenset[str] = frozenset({"binary_expression"})
    operators: frozenset[str] = frozenset({"+"})
    """What joins two strings."""
    interpolated: frozenset[str] = frozenset()
    """Strings that may hold expressions."""
    implied: str = ""
    """A beginning that names may have or not, as ``std.``."""
    brackets: str = "c"
    """How text is cut into logical lines, see ``lines.py``."""


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def _set(*names: str) -> frozenset[str]:
    return frozenset(names)


_C_CALLS = {"call_expression": ("function", "arguments")}
_C_SETS = {
    "init_declarator": ("declarator", "value"),
    "assignment_expression": ("left", "right"),
    "initializer_pair": ("designator", "value"),
}
_JS = {
    "calls": _C_CALLS,
    "news": {"new_expression": ("constructor", "arguments")},
    "sets": {
        "variable_declarator": ("name", "value"),
        "assignment_expression": ("left", "right"),
        "augmented_assignment_expression": ("left", "right"),
        "pair": ("key", "value"),
        "jsx_attribute": (FIRST, LAST),
        "public_field_definition": ("name", "value"),
        "field_definition": ("property", "value"),
        "for_in_statement": ("left", "right"),
    },
    "members": {"member_expression": ("object", "property")},
    "functions": _set(
        "function_declaration",
        "method_definition",
        "function_expression",
        "generator_function_declaration",
    ),
    "lambdas": _set("arrow_function"),
    "loops": _set("for_statement", "for_in_statement", "while_statement", "do_statement"),
    "imports": _set("import_statement", "variable_declarator"),
    "interpolated": _set("template_string"),
    "brackets": "js",
}

GRAMMARS: dict[str, Grammar] = {
    "python": Grammar(
        "python",
        calls={
            "call": ("function", "arguments"),
            "assert_statement": ("=assert", ALL),
            "exec_statement": ("=exec", ALL),
        },
        sets={
            "assignment": ("left", "right"),
            "augmented_assignment": ("left", "right"),
            "keyword_argument": ("name", "value"),
            "default_parameter": ("name", "value"),
            "typed_default_parameter": ("name", "value"),
            "pair": ("key", "value"),
            "for_statement": ("left", "right"),
            "for_in_clause": ("left", "right"),
            "as_pattern": (LAST, FIRST),
            "named_expression": ("name", "value"),
        },
        members={"attribute": ("object", "attribute")},
        functions=_set("function_definition"),
        lambdas=_set("lambda"),
        loops=_set("for_statement", "while_statement"),
        imports=_set("import_statement", "import_from_statement"),
        concats=_set("binary_operator"),
        operators=_set("+", "%"),
        interpolated=_set("string"),
        brackets="python",
    ),
    "c": Grammar(
        "c",
        calls=_C_CALLS,
        sets=_C_SETS,
        members={"field_expression": ("argument", "field")},
        functions=_set("function_definition"),
        operators=frozenset(),
    ),
    "cpp": Grammar(
        "cpp",
        implied="std.",
        calls=_C_CALLS
        | {"delete_expression": ("=delete", ALL), "throw_statement": ("=throw", ALL)},
        news={"new_expression": ("type", "arguments")},
        sets=_C_SETS | {"for_range_loop": ("declarator", "right")},
        members={
            "field_expression": ("argument", "field"),
            "qualified_identifier": ("scope", "name"),
        },
        functions=_set("function_definition"),
        lambdas=_set("lambda_expression"),
        loops=_set("for_statement", "for_range_loop", "while_statement", "do_statement"),
    ),
    "javascript": Grammar("javascript", **_JS),  # type: ignore[arg-type]
    "typescript": Grammar("typescript", "language_typescript", **_JS),  # type: ignore[arg-type]
    "tsx": Grammar("typescript", "language_tsx", **_JS),  # type: ignore[arg-type]
    "java": Grammar(
        "java",
        methods={"method_invocation": ("object", "name", "arguments")},
        news={"object_creation_expression": ("type", "arguments")},
        sets={
            "variable_declarator": ("name", "value"),
            "assignment_expression": ("left", "right"),
            "enhanced_for_statement": ("name", "value"),
            "element_value_pair": ("key", "value"),
        },
        members={
            "field_access": ("object", "field"),
            "scoped_identifier": ("scope", "name"),
            "scoped_type_identifier": (FIRST, LAST),
        },
        functions=_set("method_declaration", "constructor_declaration"),
        lambdas=_set("lambda_expression"),
        loops=_set("for_statement", "enhanced_for_statement", "while_statement", "do_statement"),
    ),
    "csharp": Grammar(
        "c_sharp",
        calls={"invocation_expression": ("function", "arguments")},
        news={"object_creation_expression": ("type", "arguments")},
        sets={
            "variable_declarator": ("name", LAST),
            "assignment_expression": ("left", "right"),
            "foreach_statement": ("left", "right"),
            "property_declaration": ("name", "value"),
            "parameter": ("name", LAST),
        },
        members={
            "member_access_expression": ("expression", "name"),
            "conditional_access_expression": ("condition", LAST),
            "qualified_name": ("qualifier", "name"),
        },
        functions=_set("method_declaration", "constructor_declaration", "local_function_statement"),
        lambdas=_set("lambda_expression", "anonymous_method_expression"),
        loops=_set("for_statement", "foreach_statement", "while_statement", "do_statement"),
        interpolated=_set("interpolated_string_expression"),
        brackets="csharp",
    ),
    "php": Grammar(
        "php",
        "language_php",
        calls={
            "function_call_expression": ("function", "arguments"),
            "echo_statement": ("=echo", ALL),
            "print_intrinsic": ("=print", ALL),
            "include_expression": ("=include", ALL),
            "include_once_expression": ("=include_once", ALL),
            "require_expression": ("=require", ALL),
            "require_once_expression": ("=require_once", ALL),
            "exit_statement": ("=exit", ALL),
            "shell_command_expression": ("=backtick", ALL),
            "unset_statement": ("=unset", ALL),
        },
        methods={
            "member_call_expression": ("object", "name", "arguments"),
            "nullsafe_member_call_expression": ("object", "name", "arguments"),
            "scoped_call_expression": ("scope", "name", "arguments"),
        },
        news={"object_creation_expression": (FIRST, LAST)},
        sets={
            "assignment_expression": ("left", "right"),
            "augmented_assignment_expression": ("left", "right"),
            "array_element_initializer": (FIRST, LAST),
            "property_element": ("name", "default_value"),
            "const_element": (FIRST, LAST),
            "simple_parameter": ("name", "default_value"),
            "foreach_statement": (LAST, FIRST),
        },
        members={
            "member_access_expression": ("object", "name"),
            "scoped_property_access_expression": ("scope", "name"),
            "class_constant_access_expression": (FIRST, LAST),
        },
        functions=_set("function_definition", "method_declaration"),
        lambdas=_set("anonymous_function", "arrow_function"),
        loops=_set("for_statement", "foreach_statement", "while_statement", "do_statement"),
        operators=_set("."),
        interpolated=_set("encapsed_string", "heredoc", "shell_command_expression"),
        brackets="php",
    ),
    "rust": Grammar(
        "rust",
        calls={
            "call_expression": ("function", "arguments"),
            "macro_invocation": ("macro", LAST),
            "unsafe_block": ("=unsafe", ALL),
        },
        sets={
            "let_declaration": ("pattern", "value"),
            "assignment_expression": ("left", "right"),
            "compound_assignment_expr": ("left", "right"),
            "field_initializer": ("field", "value"),
            "const_item": ("name", "value"),
            "static_item": ("name", "value"),
            "for_expression": ("pattern", "value"),
        },
        members={"field_expression": ("value", "field"), "scoped_identifier": ("path", "name")},
        functions=_set("function_item"),
        lambdas=_set("closure_expression"),
        loops=_set("for_expression", "while_expression", "loop_expression"),
        imports=_set("use_declaration"),
        brackets="rust",
    ),
    "go": Grammar(
        "go",
        calls={
            "call_expression": ("function", "arguments"),
            "composite_literal": ("type", "body"),
            "type_conversion_expression": ("type", "operand"),
        },
        sets={
            "short_var_declaration": ("left", "right"),
            "assignment_statement": ("left", "right"),
            "var_spec": ("name", "value"),
            "const_spec": ("name", "value"),
            "keyed_element": (FIRST, LAST),
            "range_clause": ("left", "right"),
        },
        members={
            "selector_expression": ("operand", "field"),
            "qualified_type": ("package", "name"),
        },
        functions=_set("function_declaration", "method_declaration"),
        lambdas=_set("func_literal"),
        loops=_set("for_statement"),
        imports=_set("import_spec"),
        brackets="go",
    ),
    "kotlin": Grammar(
        "kotlin",
        calls={"call_expression": (FIRST, LAST)},
        sets={
            "property_declaration": ("#var", LAST),
            "assignment": ("left", "right"),
            "for_statement": (FIRST, LAST),
        },
        members={"navigation_expression": (FIRST, LAST), "qualified_identifier": (FIRST, LAST)},
        functions=_set("function_declaration"),
        lambdas=_set("lambda_literal"),
        imports=_set("import"),
        interpolated=_set("string_literal", "multiline_string_literal"),
        brackets="kotlin",
    ),
    "swift": Grammar(
        "swift",
        calls={"call_expression": (FIRST, LAST)},
        sets={
            "property_declaration": ("name", "value"),
            "assignment": ("target", "result"),
            "for_statement": ("item", "collection"),
        },
        members={"navigation_expression": ("target", "suffix")},
        functions=_set("function_declaration", "init_declaration"),
        lambdas=_set("lambda_literal"),
        concats=_set("additive_expression"),
        interpolated=_set("line_string_literal", "multi_line_string_literal"),
        brackets="swift",
    ),
    "ruby": Grammar(
        "ruby",
        calls={"subshell": ("=backtick", ALL)},
        methods={"call": ("receiver", "method", "arguments")},
        sets={
            "assignment": ("left", "right"),
            "operator_assignment": ("left", "right"),
            "pair": ("key", "value"),
            "keyword_parameter": ("name", "value"),
            "optional_parameter": ("name", "value"),
        },
        members={"scope_resolution": ("scope", "name")},
        functions=_set("method", "singleton_method"),
        lambdas=_set("block", "do_block", "lambda"),
        loops=_set("for", "while", "until"),
        concats=_set("binary"),
        operators=_set("+", "<<", "%"),
        interpolated=_set("string", "subshell", "heredoc_body"),
        brackets="ruby",
    ),
    "bash": Grammar(
        "bash",
        calls={"command": ("name", "#arguments")},
        sets={"variable_assignment": ("name", "value"), "for_statement": ("variable", "value")},
        functions=_set("function_definition"),
        loops=_set("for_statement", "while_statement", "c_style_for_statement"),
        concats=_set("concatenation"),
        interpolated=_set("string", "concatenation"),
        brackets="bash",
    ),
    "yaml": Grammar(
        "yaml",
        sets={"block_mapping_pair": ("key", "value"), "flow_pair": ("key", "value")},
        brackets="xml",
    ),
    "json": Grammar("yaml", sets={"flow_pair": ("key", "value")}, brackets="xml"),
    "terraform": Grammar("hcl", sets={"attribute": (FIRST, LAST)}, brackets="lines"),
    "xml": Grammar(
        "xml",
        "language_xml",
        sets={"Attribute": (FIRST, LAST), "element": ("#tag", "#body")},
        brackets="xml",
    ),
    "dockerfile": Grammar("dockerfile", sets={"env_pair": ("name", "value")}, brackets="lines"),
    "sql": Grammar("sql", concats=frozenset(), brackets="sql"),
}


@cache
def load(language: str) -> Language:
    """The compiled grammar, loaded at its first use."""
    grammar = GRAMMARS[language]
    module = importlib.import_module(f"tree_sitter_{grammar.package}")
    with warnings.catch_warnings():  # some grammars still give an address instead of a capsule
        warnings.simplefilter("ignore", DeprecationWarning)
        return Language(getattr(module, grammar.entry)())
