-- What is missing of one source when nothing is under way: kind, detail, shard, seq, tx_id. `:table` is the source.

-- Rows that are neither signed nor rejected.
(SELECT 'row_without_outcome', 'committed, but neither signed nor rejected', t.shard::int, NULL::bigint, t.id
 FROM :table t WHERE NOT EXISTS (SELECT FROM outcomes o WHERE o.source = %(source)s AND o.tx_id = t.id)
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
     SELECT source, chain_id, sender, first_nonce, first_nonce + count - 1, 0 FROM signing_ledger WHERE count > 0
 ) nonces
 GROUP BY chain_id, sender
 HAVING bool_or(source = %(source)s) AND max(high) - min(low) + 1 <> sum(held)
 LIMIT %(limit)s)

UNION ALL
-- Batches that a signer swore to sign and that never appeared.
(SELECT 'batch_not_published', format('worker %%s recorded it at %%s', l.worker, l.written_at), l.shard::int, l.seq, NULL
 FROM signing_ledger l
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
