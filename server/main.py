"""For launchers of ASGI applications: `uvicorn main:app --app-dir server`."""

from finlora.api.app import create_app
from finlora.config import load_settings

app = create_app(load_settings())
