from __future__ import annotations

import re
from pathlib import Path

import agents.gguf_factory as factory


def test_every_module_stands_once_in_the_package_s_map() -> None:
    assert factory.__doc__ is not None and factory.__file__ is not None
    lines = re.findall(r"^- .*?: (.*)$", factory.__doc__, re.MULTILINE)
    named = sorted(re.sub(r" \(.*?\)", "", name) for line in lines for name in line.split(", "))
    modules = sorted(path.stem for path in Path(factory.__file__).parent.glob("[a-z]*.py"))
    assert named == modules
