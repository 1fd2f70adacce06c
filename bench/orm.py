"""The storage as Superset first had it: Python over an ORM.

Written from its description: select, then insert or update; a list loads its
scope and slices it; rotation is MultiFernet.rotate over all rows in one
transaction.  It works on the extension's own table.
"""

import base64
import datetime
import hashlib
import uuid

import sqlalchemy as sa
from cryptography.fernet import Fernet, MultiFernet
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.orm import declarative_base

Base = declarative_base()


class Entry(Base):
    __tablename__ = "extension_storage"

    id = sa.Column(sa.Integer, sa.Identity(), primary_key=True)
    uuid = sa.Column(UUID(as_uuid=True), default=uuid.uuid4, unique=True)
    extension_id = sa.Column(sa.String(255), nullable=False)
    user_fk = sa.Column(sa.Integer)
    resource_type = sa.Column(sa.String(64))
    resource_uuid = sa.Column(sa.String(36))
    key = sa.Column(sa.String(255), nullable=False)
    category = sa.Column(sa.String(64))
    description = sa.Column(sa.Text)
    value = sa.Column(sa.LargeBinary, nullable=False)
    value_type = sa.Column(sa.String(255), nullable=False)
    is_encrypted = sa.Column(sa.Boolean, nullable=False, default=False)
    created_on = sa.Column(sa.DateTime, default=datetime.datetime.utcnow)
    changed_on = sa.Column(
        sa.DateTime,
        default=datetime.datetime.utcnow,
        onupdate=datetime.datetime.utcnow,
    )
    created_by_fk = sa.Column(sa.Integer)
    changed_by_fk = sa.Column(sa.Integer)


class Store:
    """The data access object; its keys are derived once, not at each call."""

    def __init__(self, session, secrets):
        self.session = session
        self.fernet = MultiFernet(
            Fernet(base64.urlsafe_b64encode(hashlib.sha256(s.encode()).digest()))
            for s in secrets
        )

    def _find(self, extension_id, key):
        return self._scope(extension_id).filter(Entry.key == key).one_or_none()

    def _scope(self, extension_id):
        return self.session.query(Entry).filter(
            Entry.extension_id == extension_id,
            Entry.user_fk.is_(None),
            Entry.resource_type.is_(None),
            Entry.resource_uuid.is_(None),
        )

    def get(self, extension_id, key):
        entry = self._find(extension_id, key)
        if entry is None:
            return None
        if entry.is_encrypted:
            return self.fernet.decrypt(entry.value)
        return entry.value

    def set(self, extension_id, key, value, is_encrypted):
        entry = self._find(extension_id, key)
        if entry is None:
            entry = Entry(extension_id=extension_id, key=key)
            self.session.add(entry)
        entry.value = self.fernet.encrypt(value) if is_encrypted else value
        entry.value_type = "application/json"
        entry.is_encrypted = is_encrypted
        self.session.flush()

    def list(self, extension_id, page=0, page_size=25):
        entries = self._scope(extension_id).order_by(Entry.key).all()
        return entries[page * page_size : (page + 1) * page_size]

    def rotate(self, extension_id):
        """Rotates one extension's rows; returns how many there were."""
        entries = self._scope(extension_id).filter(Entry.is_encrypted.is_(True)).all()
        for entry in entries:
            entry.value = self.fernet.rotate(entry.value)
        self.session.commit()
        return len(entries)
