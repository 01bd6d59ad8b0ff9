-- Keys that are never lent again. What is left of their private keys may be deleted, and nothing else of the copies.

CREATE TABLE retired_keys (
    chain_id   bigint NOT NULL,
    address    bytea NOT NULL CHECK (octet_length(address) = 20),
    retired_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (chain_id, address)
);
CREATE TRIGGER retired_keys_immutable BEFORE UPDATE OR DELETE ON retired_keys
    FOR EACH ROW EXECUTE FUNCTION oncesign_refuse_change_v1();
CREATE TRIGGER retired_keys_kept BEFORE TRUNCATE ON retired_keys
    FOR EACH STATEMENT EXECUTE FUNCTION oncesign_refuse_change_v1();

CREATE FUNCTION oncesign_keep_until_retired_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM retired_keys r WHERE (r.chain_id, r.address) = (OLD.chain_id, OLD.address)) THEN
        RAISE EXCEPTION 'rows of % are immutable until their key is retired: DELETE refused', TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN OLD;
END $$;

DROP TRIGGER kept_keys_immutable ON kept_keys;
CREATE TRIGGER kept_keys_immutable BEFORE UPDATE ON kept_keys
    FOR EACH ROW EXECUTE FUNCTION oncesign_refuse_change_v1();
CREATE TRIGGER kept_keys_until_retired BEFORE DELETE ON kept_keys
    FOR EACH ROW EXECUTE FUNCTION oncesign_keep_until_retired_v1();
