"""What is wrong with an operator's files, in words without a word of them: they hold prompts that must not
spread, and some of the library's errors quote what they refuse."""

from __future__ import annotations

from autoclave.errors import DataError, InputError, JudgeError


def without_text(error: InputError) -> str:
    """A JudgeError is taken to be about a prompt: one about a judge's name has to be told apart by where it
    was raised."""
    match error:
        case DataError():
            issues = "; ".join(f"line {issue.line}: {issue.rule}" for issue in error.issues[:3])
            return f"{error.source}: {issues} ({error.num_issues} in all)"
        case JudgeError():
            return "its judge cannot judge one of the prompts in harmful_eval"
        case _:
            return str(error)
