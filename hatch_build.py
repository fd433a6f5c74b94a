"""Builds the wheel. With ``COATCHECK_COMPILE=1``, the modules that pyproject.toml names are compiled by mypyc.

They are compiled in a folder of their own, so nothing is left beside the sources. Their Python files are in the wheel
too: a Python that the compiled ones do not fit imports those.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "COATCHECK_COMPILE"
COMPILER = ["mypy>=2.4,<3", "setuptools>=65"]
OPTIONS = {"MYPYC_OPT_LEVEL": "2", "MYPYC_DEBUG_LEVEL": "0"}


class CompilingHook(BuildHookInterface):
    """Compiles nothing unless asked to, and never for an editable install: there, the sources are what is edited."""

    def dependencies(self) -> list[str]:
        return [*COMPILER, *self.metadata.core.dependencies] if self._is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or not self._is_wanted():
            return
        folder = self._folder = Path(tempfile.mkdtemp(prefix="coatcheck-"))
        shutil.copytree(Path(self.root, "src", "coatcheck"), folder / "coatcheck")
        files = [module.replace(".", "/") + ".py" for module in self.config["modules"]]
        command = [sys.executable, "-m", "mypyc", "--ignore-missing-imports", *files]
        subprocess.run(command, cwd=folder, env={**OPTIONS, **os.environ}, check=True)
        for made in [*folder.glob("*.so"), *folder.glob("coatcheck/**/*.so")]:
            build_data["force_include"][str(made)] = str(made.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if not build_data["pure_python"]:
            shutil.rmtree(self._folder)

    def _is_wanted(self) -> bool:
        said = os.environ.get(VARIABLE, "0")
        if said not in ("0", "1"):
            raise ValueError(f"{VARIABLE}: 1 compiles, 0 does not; not {said!r}")
        return said == "1"
