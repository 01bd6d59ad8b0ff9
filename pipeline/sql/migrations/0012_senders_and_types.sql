-- Rows that say who must sign them, and what blob (EIP-4844) and set-code (EIP-7702) transactions have. A source that
-- was made before, or by hand, goes on without these columns.

ALTER TABLE transactions
    ADD COLUMN sender               bytea CHECK (octet_length(sender) = 20),
    ADD COLUMN max_fee_per_blob_gas numeric(78, 0) CHECK (max_fee_per_blob_gas >= 0),
    ADD COLUMN blob_hashes          jsonb,
    ADD COLUMN authorization_list   jsonb;
COMMENT ON COLUMN transactions.sender IS 'who must sign it; null: any key of the pool';
COMMENT ON COLUMN transactions.max_fee_per_blob_gas IS 'wei per blob gas, of type 3';
COMMENT ON COLUMN transactions.blob_hashes IS '["0x01…"], of type 3: the versioned hashes of its blobs';
COMMENT ON COLUMN transactions.authorization_list IS
    '[{"chainId", "address", "nonce", "yParity", "r", "s"}], of type 4: signed by the accounts that it is about';

-- Keys that sign blob transactions and nothing else, so that a recovery of etcd gives them back as they were.
CREATE TABLE keys_set_apart (
    chain_id bigint NOT NULL,
    address  bytea NOT NULL CHECK (octet_length(address) = 20),
    PRIMARY KEY (chain_id, address)
);
