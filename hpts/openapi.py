"""The API document. (filled in below)"""
from __future__ import annotations
from django.http import HttpRequest, HttpResponse
from drf_spectacular.openapi import AutoSchema
class Schema(AutoSchema):
    pass
def document(request: HttpRequest) -> HttpResponse:
    return HttpResponse("{}")
def docs(request: HttpRequest) -> HttpResponse:
    return HttpResponse("")
