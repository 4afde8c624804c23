"""Finds out whether a chat template loops over the parts of a message's content.

Such a template gets each content as a list of parts. Other templates get a text. vLLM also decides this by the loops
of the template's program, so prompts equal the server's.
"""

from collections.abc import Iterator

from jinja2 import nodes


def loops_over_content(program: nodes.Template) -> bool:
    """Whether a loop of the template goes over `message.content`, a variable `content`, or a macro's content."""
    messages = _message_variables(program)
    macro_parameters = dict(_content_parameters(program, messages))
    for loop in program.find_all(nodes.For):
        if any(_is_item(loop.iter, message, "content") for message in messages):
            return True
        if isinstance(loop.iter, nodes.Name):
            parameters = macro_parameters.get(id(loop))
            if loop.iter.name in (("content",) if parameters is None else parameters):
                return True
    return False


def _message_variables(program: nodes.Template) -> list[str]:
    """Return the names of the variables that are a message in a loop over the messages."""
    lists = ["messages"]
    for name in lists:  # grows while it is read
        for assignment in program.find_all(nodes.Assign):
            target = assignment.target
            if isinstance(target, nodes.Name) and target.name not in lists and _is_item(assignment.node, name):
                lists.append(target.name)
    return [
        loop.target.name
        for loop in program.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and any(_is_item(loop.iter, name) for name in lists)
    ]


def _content_parameters(program: nodes.Template, messages: list[str]) -> Iterator[tuple[int, set[str]]]:
    """Yield each loop in a macro, and the parameters of this macro that a call gives a message's content."""
    for macro in program.find_all(nodes.Macro):
        names = [argument.name for argument in macro.args]
        parameters: set[str] = set()
        for call in program.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name == macro.name:
                given = [*zip(names, call.args, strict=False), *((pair.key, pair.value) for pair in call.kwargs)]
                parameters |= {
                    name for name, value in given if any(_is_item(value, message, "content") for message in messages)
                }
        for loop in macro.find_all(nodes.For):
            yield id(loop), parameters & set(names)


def _is_item(node: nodes.Node | None, variable: str, key: str | None = None) -> bool:
    """Whether an expression is the variable, or its item `key`; also with filters, tests or a slice after it."""
    if isinstance(node, nodes.Filter | nodes.Test):
        return _is_item(node.node, variable, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _is_item(node.node, variable, key)
    if key is None:
        return isinstance(node, nodes.Name) and node.name == variable
    if isinstance(node, nodes.Getitem):
        is_key = isinstance(node.arg, nodes.Const) and node.arg.value == key
        return is_key and _is_item(node.node, variable)
    return isinstance(node, nodes.Getattr) and node.attr == key and _is_item(node.node, variable)
