"""Verifiable rewards for rft: OpenAI's grader format, carried out on this machine. Imports no torch.

string_check compares, python calls ``grade(sample, item)`` of the user's own source, multi joins several by a formula.
``{{sample.output_text}}``, ``{{sample.output_json.x}}`` and ``{{item.x}}`` stand for the model's answer and the row's columns.
Source: the graders of OpenAI's fine-tuning reference (openai-openapi 2.3.0, schemas GraderStringCheck, GraderPython, GraderMulti).
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tuneport.core.errors import DataError, JobFailedError

_PLACE = re.compile(r"\{\{\s*((?:sample|item)(?:\.[\w-]+)+)\s*\}\}")
_CHECKS: Mapping[str, Callable[[str, str], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "like": lambda text, part: part in text,
    "ilike": lambda text, part: part.lower() in text.lower(),
}
_NOT_LOCAL: Mapping[str, str] = {
    "text_similarity": "the local backend carries no similarity metrics; compute one in a python grader",
    "score_model": "a score_model grader asks OpenAI's model, and a local job talks to nobody",
    "label_model": "a label_model grader asks OpenAI's model, and a local job talks to nobody",
}
_OPERATORS: Mapping[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil, "exp": math.exp, "sqrt": math.sqrt, "log": math.log,
}

Grade = Callable[[str, Mapping[str, Any]], float]
"""(the model's answer, the row's columns) -> reward, the higher the better."""


def grader_fault(grader: Mapping[str, Any]) -> str:
    """Why this grader cannot be carried out here, or "". Runs none of it."""
    try:
        make_grade(grader)
    except DataError as error:
        return error.what
    return ""


def make_grade(grader: Mapping[str, Any]) -> Grade:
    """The grader as a function. Raises DataError for one that is malformed or not offered here."""
    kind = grader.get("type")
    if kind == "string_check":
        return _string_check(grader)
    if kind == "python":
        return _python(grader)
    if kind == "multi":
        return _multi(grader)
    offered = "graders of type string_check, python and multi run on this machine"
    raise DataError(_NOT_LOCAL.get(str(kind), f"{offered}, not {kind!r}"), fix="change reinforcement.grader")


def _string_check(grader: Mapping[str, Any]) -> Grade:
    check = _CHECKS.get(str(grader.get("operation")))
    given, wanted = grader.get("input"), grader.get("reference")
    if check is None or not isinstance(given, str) or not isinstance(wanted, str):
        known = ", ".join(_CHECKS)
        raise DataError(f"a string_check needs input, reference and an operation of {known}", fix="correct reinforcement.grader")
    return lambda answer, item: float(check(_fill(given, answer, item), _fill(wanted, answer, item)))


def _python(grader: Mapping[str, Any]) -> Grade:
    try:
        code = compile(str(grader["source"]), "<reinforcement.grader>", "exec")
    except (KeyError, SyntaxError) as error:
        raise DataError(f"the python grader's source cannot be read ({error})", fix="give it a function grade(sample, item)") from error
    if "grade" not in code.co_names:
        raise DataError("the python grader defines no function grade(sample, item)", fix="add it to the source")
    loaded: dict[str, Any] = {"__name__": "grader"}

    def grade(answer: str, item: Mapping[str, Any]) -> float:
        try:
            if "grade" not in loaded:
                exec(code, loaded)  # noqa: S102 - the user's own source, out of the user's own spec
            return _finite(loaded["grade"](_sample(answer), dict(item)))
        except Exception as error:
            what = f"the python grader failed with {type(error).__name__}: {error}"
            raise JobFailedError(what, fix="let it return 0 for answers that it cannot judge, and submit anew") from error

    return grade


def _multi(grader: Mapping[str, Any]) -> Grade:
    parts, formula = grader.get("graders"), grader.get("calculate_output")
    if not isinstance(parts, Mapping) or not parts or not isinstance(formula, str):
        raise DataError("a multi grader needs graders and calculate_output", fix="correct reinforcement.grader")
    grades = {name: make_grade(part) for name, part in parts.items()}
    try:
        tree = ast.parse(formula, mode="eval").body
        with suppress(ArithmeticError):  # a division by zero may be one of these trial values' own
            _value(tree, dict.fromkeys(grades, 1.0))
    except (SyntaxError, KeyError, TypeError, ValueError) as error:
        what = f"calculate_output {formula!r} cannot be computed ({error})"
        raise DataError(what, fix="use the graders' names and arithmetic") from error

    def joined(answer: str, item: Mapping[str, Any]) -> float:
        given = {name: grade(answer, item) for name, grade in grades.items()}
        try:
            return _finite(_value(tree, given))
        except (ArithmeticError, TypeError, ValueError) as error:
            grades_given = ", ".join(f"{name} = {value:g}" for name, value in given.items())
            what = f"calculate_output {formula!r} cannot be computed from {grades_given} ({error})"
            raise JobFailedError(what, fix="write it so that every answer has a finite grade, and submit anew") from error

    return joined


def _finite(grade: Any) -> float:
    """The grade as a number. Raises ValueError for nan and infinity, which no run survives, and TypeError for what is no number."""
    if not math.isfinite(found := float(grade)):
        raise ValueError(f"{found} is no grade")
    return found


def _value(node: ast.AST, names: Mapping[str, float]) -> float:
    """Arithmetic only: numbers, the graders' names, + - * / ** and a few functions."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_value(node.operand, names))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return float(_FUNCTIONS[node.func.id](*(_value(part, names) for part in node.args)))
    raise ValueError(f"{ast.unparse(node)} is no arithmetic")


def _sample(answer: str) -> dict[str, Any]:
    try:
        parsed = json.loads(answer)
    except ValueError:
        parsed = None
    return {"output_text": answer, "output_json": parsed}


def _fill(template: str, answer: str, item: Mapping[str, Any]) -> str:
    known = {"sample": _sample(answer), "item": item}

    def value(match: re.Match[str]) -> str:
        found: Any = known
        for key in match[1].split("."):
            if not isinstance(found, Mapping) or key not in found:
                if match[1].startswith("sample.output_json"):
                    return ""  # the model's answer is not that JSON, which is for the check to say
                raise JobFailedError(f"the grader reads {match[1]}, which a row does not have", fix="add the column or correct the grader")
            found = found[key]
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    return _PLACE.sub(value, template)
