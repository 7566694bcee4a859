"""The side tables: everything about runs that is not the user's."""

from typing import Final

import sqlalchemy as sa

from entropic.models.types import PlainJson

# A MetaData of their own, so that a user's create_all or migrations never touch them.
side_tables: Final = sa.MetaData()

models_table: Final = sa.Table(
    "entropic_models",
    side_tables,
    sa.Column("model", sa.String, primary_key=True, comment="the name of the model's table"),
    sa.Column("format", sa.Integer, nullable=False, comment="of the side tables and of ids"),
    sa.Column("nonce", sa.String, nullable=False, comment="marks what this cache staged"),
    sa.Column("from_2x", sa.Boolean, nullable=False, comment="entropic 2 made the table"),
    comment="one row a model that this database has seen",
)

columns_table: Final = sa.Table(
    "entropic_columns",
    side_tables,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("parameter", sa.String, primary_key=True),
    sa.Column(
        "identity_default",
        sa.Text,
        comment="canonical JSON of the default when the column was first seen; NULL for none",
    ),
    comment="what does not count in a run id; written once, never changed",
)

runs_table: Final = sa.Table(
    "entropic_runs",
    side_tables,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column(
        "state",
        sa.String(16),
        nullable=False,
        comment="running, done, failed, interrupted, deleted",
    ),
    sa.Column("token", sa.BigInteger, nullable=False, comment="counts the owners; never restarts"),
    sa.Column("published", sa.BigInteger, nullable=False, comment="the token of the stored result"),
    sa.Column("owner", sa.String, comment="who runs it now"),
    sa.Column("lease_expires", sa.Double, comment="seconds since 1970 by the database's clock"),
    sa.Column("attempts", sa.BigInteger, nullable=False, comment="how often it was started"),
    sa.Column("error", PlainJson, comment="of the last attempt: type, message, traceback, time"),
    sa.Column("folder", sa.String, comment="the id of the results folder that holds the result"),
    sa.Column("result_name", sa.String, comment="the name that is ours in that folder"),
    sa.Column("registered_path", sa.String, comment="absolute path of a registered result"),
    sa.Column("companions", sa.Boolean, comment="whether other files lie beside the result"),
    sa.Column("size", sa.BigInteger, comment="bytes of the result; NULL where not recorded"),
    sa.Column("digest", sa.String, comment="SHA-256 of the result"),
    sa.Column("host", sa.String, comment="where it ran"),
    sa.Column("started_at", sa.Double, comment="seconds since 1970"),
    sa.Column("elapsed_seconds", sa.Double, comment="of the runner alone"),
    comment="the bookkeeping of one row a model and run id",
)
