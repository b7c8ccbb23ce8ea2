"""A deployment with a version that we choose. Serve's own, of an application that is run from Python, is a new one each
time, and with it every replica is replaced.

Ray 2.60 took the version out of its public options and kept it behind them: only this file knows, and a test of it.
"""

from __future__ import annotations

from ray import serve


def with_version(deployment: serve.Deployment, version: str) -> serve.Deployment:
    """Replicas are replaced when the version differs from that of the deployment that runs, or their resources do. An
    application from a declarative configuration has Serve's own version all the same."""
    return deployment.options(version=version, _internal=True)
