"""Settings from the environment, with an error that names the one that is wrong."""

from __future__ import annotations

import os
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from pipeline.errors import SettingError
from pipeline.settings import ENV_PREFIX, Settings

CACHE = ENV_PREFIX + "CACHE_DIR"


def load_settings() -> Settings:
    """Raises SettingError: which one, why, and what to do."""
    try:
        settings = Settings()
    except ValidationError as error:
        raise _explained(error.errors(include_url=False, include_input=False)[0]) from None
    except SettingsError as error:
        raise SettingError(ENV_PREFIX + "…", f"{error}", hint="See: oncesign config") from None
    known = {name.split("__")[0] for name in variable_names()}
    for variable in os.environ:
        if variable.startswith(ENV_PREFIX) and variable != CACHE and variable.split("__")[0] not in known:
            raise SettingError(variable, "there is no such setting", hint="See: oncesign config")
    return settings


def _explained(error: Any) -> SettingError:
    path = [str(part) for part in error["loc"]]
    message = str(error["msg"]).removeprefix("Value error, ")
    return SettingError(
        ENV_PREFIX + "__".join(path).upper(), message[:1].lower() + message[1:], hint="See: oncesign config"
    )


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
