"""Settings from the environment, with an error that names the one that is wrong."""

from __future__ import annotations

import os
import re
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from pipeline.errors import SettingError
from pipeline.settings import ENV_PREFIX, Settings

CACHE = ENV_PREFIX + "CACHE_DIR"
HINT = "Mend or unset it; `oncesign config` lists all settings."
SECTION_PATH = ("section", "setting")
"""How deep a variable of a section is."""


def load_settings() -> Settings:
    """Raises SettingError: which one, why, and what to do."""
    try:
        settings = Settings()
    except ValidationError as error:
        raise _explained(error.errors(include_url=False, include_input=False)[0]) from None
    except SettingsError as error:
        name = re.search(r'field "(\w+)"', str(error))
        setting = ENV_PREFIX + (name[1].upper() if name else "…")
        raise SettingError(setting, "is not JSON", hint=HINT) from None
    known = {name.split("__")[0] for name in variable_names()}
    for variable in os.environ:
        if variable.startswith(ENV_PREFIX) and variable != CACHE and variable.split("__")[0] not in known:
            raise SettingError(variable, "there is no such setting", hint=HINT)
    if settings.data_dir.exists() and not settings.data_dir.is_dir():
        raise SettingError(ENV_PREFIX + "DATA_DIR", f"{settings.data_dir} is not a directory", hint="Name another.")
    return settings


def _explained(error: Any) -> SettingError:
    path = [str(part) for part in error["loc"]]
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    names = [ENV_PREFIX + "__".join(path[:end]).upper() for end in range(1, len(path) + 1)]
    if error["type"] == "extra_forbidden" and len(path) == len(SECTION_PATH):
        return SettingError(names[-1], "there is no such setting", hint=HINT)
    variable = next((name for name in reversed(names) if name in variable_names()), names[0])
    inside = path[names.index(variable) + 1 :]  # of a variable that holds JSON
    return SettingError(variable, ": ".join([*inside, message]), hint=HINT)


def variable_names() -> list[str]:
    """Every setting's environment variable."""
    names = []
    for name, field in Settings.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        if inner is None:
            names.append(ENV_PREFIX + name.upper())
        else:
            names += [f"{ENV_PREFIX}{name}__{leaf}".upper() for leaf in inner]
    return names
