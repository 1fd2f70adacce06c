"""A configuration of Superset for try_python.sh."""

from superset_extension_storage import install as FLASK_APP_MUTATOR  # noqa: F401

SECRET_KEY = "a secret of this test"
SQLALCHEMY_DATABASE_URI = "sqlite:////srv/superset.db"
