-- What is missing of one source: kind, detail, shard, seq, tx_id. `:table` is the source. While a pipeline runs, only
-- what is due by now: batches up to the ledger's heads in sources, shards and seqs, and rows that others have overtaken.

WITH due AS (
    SELECT l.* FROM signing_ledger l
    WHERE NOT %(running)s OR EXISTS (
        SELECT FROM unnest(%(sources)s::text[], %(shards)s::int[], %(seqs)s::bigint[]) AS head (source, shard, seq)
        WHERE (head.source, head.shard) = (l.source, l.shard) AND l.seq <= head.seq)
), latest AS MATERIALIZED (
    SELECT DISTINCT ON (s.shard) s.shard, s.created_xid, s.id
    FROM :table s JOIN outcomes o ON o.source = %(source)s AND o.tx_id = s.id
    WHERE %(running)s
    ORDER BY s.shard, s.created_xid DESC, s.id DESC
)

-- Rows that are neither signed nor rejected.
(SELECT 'row_without_outcome', 'committed, but neither signed nor rejected', t.shard::int, NULL::bigint, t.id
 FROM :table t LEFT JOIN latest ON latest.shard = t.shard
 WHERE (NOT %(running)s OR (t.created_xid, t.id) < (latest.created_xid, latest.id))
   AND NOT EXISTS (SELECT FROM outcomes o WHERE o.source = %(source)s AND o.tx_id = t.id)
 LIMIT %(limit)s)

UNION ALL
-- Nonces that nobody has: of the senders of this source, from the first nonce that was lent to the last one, all must
-- be held, each by a signed row or by a filler.
(SELECT 'nonce_gap',
        format('0x%%s on chain %%s: nonces %%s to %%s hold %%s transactions', encode(sender, 'hex'), chain_id,
               min(low), max(high), sum(held)),
        NULL, NULL, NULL
 FROM (
     SELECT source, chain_id, sender, nonce AS low, nonce AS high, 1 AS held FROM outcomes WHERE status = 'signed'
     UNION ALL
     SELECT source, chain_id, sender, NULL, NULL, fillers FROM verified_batches WHERE fillers > 0
     UNION ALL
     SELECT source, chain_id, sender, first_nonce, first_nonce + count - 1, 0 FROM due WHERE count > 0
 ) nonces
 GROUP BY chain_id, sender
 HAVING bool_or(source = %(source)s) AND max(high) - min(low) + 1 <> sum(held)
 LIMIT %(limit)s)

UNION ALL
-- Batches that a signer swore to sign and that never appeared.
(SELECT 'batch_not_published', format('worker %%s recorded it at %%s', l.worker, l.written_at), l.shard::int, l.seq, NULL
 FROM due l
 WHERE l.source = %(source)s
   AND NOT EXISTS (SELECT FROM verified_batches v WHERE (v.source, v.shard, v.seq) = (l.source, l.shard, l.seq))
 LIMIT %(limit)s)

UNION ALL
-- A row may be rejected for a failed signature only where a transfer of nothing took its nonce.
(SELECT 'filler_mismatch',
        format('%%s rows failed to sign, %%s nonces were filled', coalesce(o.failed, 0), coalesce(v.fillers, 0)),
        coalesce(o.shard, v.shard)::int, coalesce(o.seq, v.seq), NULL
 FROM (SELECT shard, seq, count(*) AS failed FROM outcomes
       WHERE source = %(source)s AND reason = 'signing_failed' GROUP BY shard, seq) o
 FULL JOIN (SELECT shard, seq, fillers FROM verified_batches WHERE source = %(source)s AND fillers > 0) v USING (shard, seq)
 WHERE coalesce(o.failed, 0) <> coalesce(v.fillers, 0)
 LIMIT %(limit)s)

UNION ALL
-- What was found while following the topics.
(SELECT kind, detail, shard::int, seq, tx_id FROM violations
 WHERE source = %(source)s OR source IS NULL ORDER BY id LIMIT %(limit)s)
