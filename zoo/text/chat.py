"""Chat templates: Jinja as transformers renders it, in a sandbox, because templates are programs
that come with weights.

https://huggingface.co/docs/transformers/chat_templating_writing says what a template can use.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from zoo.text.errors import TokenizerError

# Older ones have known ways out of the sandbox.
JINJA = (3, 1, 6)


def choose(template: Any, name: str) -> str:
    """Of the `chat_template` of a tokenizer: one text, or several by name, of which "default" is
    the one for names that are not there. Raises TokenizerError where there is none."""
    named = template if isinstance(template, Mapping) else {"default": template}
    found = named.get(name) or named.get("default")
    if not isinstance(found, str):
        raise TokenizerError(
            "this tokenizer has no chat template: its model was not trained on chats, or its "
            "tokenizer_config.json or chat_template.jinja is missing; write the prompt yourself"
        )
    return found


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of its variables, which it sees as JSON would hold them.

    Raises TokenizerError for a template that is damaged, reaches for Python's insides, or refuses
    the messages (`raise_exception`), and without jinja2.
    """
    environment = _environment()
    try:
        # Through JSON: a template never holds an object of ours, whatever the caller passed.
        plain = json.loads(json.dumps(variables))
    except (TypeError, ValueError) as error:
        raise TokenizerError(f"messages and variables are plain JSON values: {error}") from error
    try:
        return environment.from_string(template).render(plain)
    except Exception as error:  # a template is a program: it can fail in every way
        raise TokenizerError(
            f"the chat template fails ({type(error).__name__}: {error}): it is damaged, or made "
            "for messages with other roles and contents"
        ) from error


@cache
def _environment() -> Any:
    try:
        import jinja2
        from jinja2 import sandbox
    except ImportError as error:
        raise TokenizerError("chat templates need jinja2: pip install 'jinja2>=3.1.6'") from error
    if tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit()) < JINJA:
        raise TokenizerError(
            f"jinja2 {jinja2.__version__} lets templates out of the sandbox: "
            "pip install 'jinja2>=3.1.6'"
        )
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _generation_blocks()],
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = _to_json  # Jinja's own escapes HTML
    environment.globals["namespace"] = _namespace()
    environment.globals["dict"] = lambda *args, **entries: dict(*args, **entries)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _namespace() -> Any:
    """Jinja's namespace without names that begin with an underscore: those are Python's insides."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    class Names(Namespace):
        def __init__(*args: Any, **entries: Any) -> None:
            self, *given = args  # so that an entry may be named self
            Namespace.__init__(self)
            for name, value in dict(*given, **entries).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise SecurityError(f"a template has no attribute {name!r}")
            super().__setitem__(name, value)

    return Names


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _generation_blocks() -> Any:
    """The extension for {% generation %}…{% endgeneration %}, which marks what the model says for
    training on it; the text is what is inside."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation
