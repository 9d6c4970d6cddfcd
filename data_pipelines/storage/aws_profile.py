"""What ``~/.aws`` says of access to S3, as Amazon's own tools read it.

obstore reads the environment alone. Keys are handed to the client and to nobody else: never print what this returns.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["aws_profile", "has_credentials"]

# Names in the files, and what obstore calls them.
_CREDENTIALS = {
    "aws_access_key_id": "aws_access_key_id",
    "aws_secret_access_key": "aws_secret_access_key",
    "aws_session_token": "aws_session_token",
}
_SETTINGS = {"region": "aws_region", "endpoint_url": "aws_endpoint"}
# Ways to get keys that only Amazon's own tools know.
_ELSEWHERE = ("sso_session", "sso_start_url", "role_arn", "credential_process")
# Where the environment gives one of these, it gives all that is needed.
_IN_ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def aws_profile(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Settings of the profile ``AWS_PROFILE`` (``default`` if it is not set), by obstore's names.

    The environment goes before the files, as with Amazon's tools: what it gives is left out. Files that are not there
    give nothing.

    Raises:
        ValueError: a file that is not readable, or ``AWS_PROFILE`` names a profile that neither file has.
    """
    name = environment.get("AWS_PROFILE", "default")
    home = Path(environment.get("HOME", "~")).expanduser()
    credentials = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE", home / ".aws" / "credentials"))
    settings = Path(environment.get("AWS_CONFIG_FILE", home / ".aws" / "config"))
    found: dict[str, str] = {}
    known = False
    sections = ((credentials, name), (settings, name if name == "default" else f"profile {name}"))
    for path, section in sections:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            # The error of a parser quotes the line, which may hold a key.
            raise ValueError(
                f"{path} is not readable as a file of AWS profiles ({type(error).__name__})"
            ) from None
        if parser.has_section(section):
            known = True
            found |= dict(parser.items(section))
    if "AWS_PROFILE" in environment and not known:
        raise ValueError(
            f"AWS_PROFILE is {name!r}, but neither {credentials} nor {settings} has such a profile: correct it, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    elsewhere = [each for each in _ELSEWHERE if each in found]
    signed = any(each in environment for each in _IN_ENVIRONMENT)
    if elsewhere and "aws_access_key_id" not in found and not signed:
        raise ValueError(
            f"the AWS profile {name!r} gets its keys by {elsewhere[0]}, which is not supported: put them into the "
            "environment with  eval $(aws configure export-credentials --format env)"
        )
    wanted: dict[str, str] = {}
    if not signed:
        wanted |= _CREDENTIALS
    if not ("AWS_REGION" in environment or "AWS_DEFAULT_REGION" in environment):
        wanted["region"] = _SETTINGS["region"]
    if not ("AWS_ENDPOINT_URL" in environment or "AWS_ENDPOINT" in environment):
        wanted["endpoint_url"] = _SETTINGS["endpoint_url"]
    return {ours: found[theirs] for theirs, ours in wanted.items() if theirs in found}


def has_credentials(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether environment or files give a way to sign requests; otherwise only the machine's own role can."""
    return any(each in environment for each in _IN_ENVIRONMENT) or "aws_access_key_id" in aws_profile(
        environment
    )
