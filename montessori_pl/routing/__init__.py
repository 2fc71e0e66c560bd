"""Choosing among several teachers: rankings, routers, what they are worth, and routing within limits."""

from montessori_pl.routing.limits import RouteLimits
from montessori_pl.routing.responses import Prompt, ResponsePool
from montessori_pl.routing.router import ConstantRouter, LearnedRouter, Router, load_router

__all__ = [
    "ConstantRouter",
    "LearnedRouter",
    "Prompt",
    "ResponsePool",
    "RouteLimits",
    "Router",
    "load_router",
]
