-- Which batches the verifier has seen on tx.signed, and where: a second sighting elsewhere is a violation, and a row of
-- the ledger without one is a batch that was never published.

CREATE TABLE verified_batches (
    source       text NOT NULL,
    shard        smallint NOT NULL,
    seq          bigint NOT NULL,
    chain_id     bigint NOT NULL,
    sender       bytea CHECK (octet_length(sender) = 20),
    fillers      integer NOT NULL DEFAULT 0,
    topic        text NOT NULL,
    partition    integer NOT NULL,
    kafka_offset bigint NOT NULL,
    PRIMARY KEY (source, shard, seq)
);
COMMENT ON COLUMN verified_batches.fillers IS 'nonces filled by a transfer of 0 to the sender itself';
