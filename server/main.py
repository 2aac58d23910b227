"""For launchers of ASGI applications: `uvicorn main:app --app-dir server`."""

from finlora.api.app import create_app
from finlora.bases.quiet import quiet_libraries
from finlora.config import load_settings

quiet_libraries()
app = create_app(load_settings())
