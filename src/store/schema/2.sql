-- A person has one key for each last day on which what it seals can be read; 0 is a key without such a day. Keys from before
-- this version have none: they are destroyed when the person is forgotten.
CREATE TABLE subjects_2 (
    id BLOB PRIMARY KEY,
    lookup BLOB NOT NULL,
    wrapped BLOB NOT NULL,
    until INTEGER NOT NULL,
    UNIQUE (lookup, until)
) STRICT;

INSERT INTO subjects_2 (id, lookup, wrapped, until) SELECT id, lookup, wrapped, 0 FROM subjects;
DROP TABLE subjects;
ALTER TABLE subjects_2 RENAME TO subjects;

CREATE INDEX due ON subjects (until) WHERE until > 0;
