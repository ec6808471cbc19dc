"""Holds real answers against the OpenAPI document: the call, the status, the code, the media type and the body."""

from __future__ import annotations

import re
from typing import Any

import httpx
import jsonschema
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENT = "urn:openapi"


class Described:
    """The document of a running server."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        resource = Resource.from_contents(document, default_specification=DRAFT202012)
        self._registry: Any = Registry().with_resource(DOCUMENT, resource)
        self._paths = [(self._pattern(path), calls) for path, calls in document["paths"].items()]

    @staticmethod
    def _pattern(template: str) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)))

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        """The description of a call; a path without parameters goes before one with."""
        found = [calls for pattern, calls in self._paths if pattern.fullmatch(path) and method.lower() in calls]
        return found[0][method.lower()] if found else None

    def check(self, response: httpx.Response) -> None:
        """An event hook: raises AssertionError when an answer is not as described."""
        request = response.request
        operation = self.operation(request.method, request.url.path)
        if operation is None:
            return  # not a call of the API: nothing was promised
        response.read()
        said = f"{request.method} {request.url.path} answered {response.status_code} {response.text[:300]}"
        answer = operation["responses"].get(str(response.status_code))
        assert answer is not None, f"{said}, which is not described"
        content = answer.get("content")
        if content is None:
            assert response.content == b"", said
            return
        media_type = response.headers["content-type"].partition(";")[0]
        assert media_type in content, f"{said}, as {media_type}"
        if "schema" in content[media_type]:
            self.fits(response.json(), content[media_type]["schema"])
        if media_type == "application/problem+json":
            assert f"`{response.json()['code']}`" in answer["description"], f"{said}: the code is not described"

    def fits(self, body: Any, schema: dict[str, Any]) -> None:
        """Raises ValidationError unless `body` is what a reference into the document says."""
        reference = {"$ref": DOCUMENT + schema["$ref"]}
        jsonschema.Draft202012Validator(reference, registry=self._registry).validate(body)
