-- A ledger row must survive a crash of Postgres before a signature may leave, whatever a role or the server has set:
-- asynchronous commit is overruled for this transaction. Stronger settings than `on` are kept.

CREATE FUNCTION oncesign_durable_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER signing_ledger_durable AFTER INSERT ON signing_ledger
    FOR EACH STATEMENT EXECUTE FUNCTION oncesign_durable_v1();
