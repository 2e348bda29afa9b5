-- The record of decisions. Rows are added and never changed; only `subjects` loses rows, when somebody is forgotten.
CREATE TABLE chain (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id BLOB NOT NULL,
    key BLOB NOT NULL
) STRICT;

CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    at INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    body BLOB NOT NULL,
    subject BLOB,
    sealed BLOB,
    prev BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT;

-- One row for each decision, whoever tries to add it again.
CREATE UNIQUE INDEX decisions ON records (id) WHERE kind = 'decision';
CREATE INDEX outcomes ON records (id, seq) WHERE kind = 'outcome';
CREATE INDEX times ON records (at) WHERE kind = 'decision';

CREATE TABLE subjects (
    id BLOB PRIMARY KEY,
    lookup BLOB NOT NULL UNIQUE,
    wrapped BLOB NOT NULL
) STRICT;
