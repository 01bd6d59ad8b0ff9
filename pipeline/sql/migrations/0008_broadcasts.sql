-- What became of signed transactions on their chain. The work list is the ledger itself: the batches of a sender from
-- `next_nonce` on, in the order of their nonces, as far as the verifier has seen them.

CREATE TABLE broadcasts (
    chain_id     bigint NOT NULL,
    sender       bytea NOT NULL CHECK (octet_length(sender) = 20),
    nonce        numeric(20, 0) NOT NULL CHECK (nonce >= 0),
    hash         bytea NOT NULL CHECK (octet_length(hash) = 32),
    source       text NOT NULL,
    tx_id        bigint,
    status       text NOT NULL CHECK (status IN ('sent', 'mined', 'failed')),
    sends        integer NOT NULL DEFAULT 0,
    detail       text NOT NULL DEFAULT '',
    block_number bigint,
    succeeded    boolean,
    gas_used     numeric(20, 0),
    first_at     timestamptz NOT NULL DEFAULT now(),
    decided_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain_id, sender, nonce),
    CHECK ((status = 'mined') = (block_number IS NOT NULL AND succeeded IS NOT NULL AND gas_used IS NOT NULL))
);
COMMENT ON COLUMN broadcasts.tx_id IS 'null for a transfer that fills a nonce';
COMMENT ON COLUMN broadcasts.sends IS 'how often a node has taken it; more than once: it had vanished from the pool';
COMMENT ON COLUMN broadcasts.succeeded IS 'the status of its receipt: false when its call was reverted';
CREATE INDEX broadcasts_row ON broadcasts (source, tx_id);

-- All nonces of a sender below this are decided; moved by whole batches, in the transaction that decides the last one.
CREATE TABLE broadcast_accounts (
    chain_id   bigint NOT NULL,
    sender     bytea NOT NULL CHECK (octet_length(sender) = 20),
    next_nonce numeric(20, 0) NOT NULL,
    PRIMARY KEY (chain_id, sender)
);
