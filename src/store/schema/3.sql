-- Notices on their way to webhooks, beside the chain and no part of it. A row says which decision overtook which answer,
-- never what they say: that is read from `records` when it is sent. Rows are changed, and trimmed once they are settled.
CREATE TABLE notices (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    decision TEXT NOT NULL,
    served_id TEXT NOT NULL,
    served_action TEXT NOT NULL,
    served_source TEXT NOT NULL,
    request_id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
    tries INTEGER NOT NULL,
    failure TEXT NOT NULL,
    created INTEGER NOT NULL,
    changed INTEGER NOT NULL
) STRICT;

CREATE INDEX notices_by_state ON notices (state, number);
