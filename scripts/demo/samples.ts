import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'

import type { Sql } from '../../outbox/sql.ts'
import type { Answer, Post } from './sender.ts'

/** A sample post and what the listener said to it. A file of several bodies, one a line, gives several. */
export type SampleAnswer = { name: string; answer: Answer }

const FOLDER = join(import.meta.dirname, 'posts')

/**
 * Targets of the sample posts, made beforehand with the types the source's tables have there. Payments come with
 * currency signs, which wait for the conversions of a later version: their table is made from the payloads, as text.
 */
export const SAMPLE_TABLES = `
create schema guildhall;
create table guildhall.user_account (
  user_id numeric(10) primary key, handle varchar(50) not null, status char(1) default 'U', email varchar(254), first_name varchar(64),
  last_name varchar(64), password varchar(300) not null, display_name varchar(200), country_code varchar(3), is_active boolean default true,
  last_login timestamp(3), create_date timestamp(3) default current_timestamp, modify_date timestamp(3) default current_timestamp not null
);
create table guildhall.country (
  country_code varchar(3) primary key, country_name varchar(40) not null, participating numeric(1) default 1, longitude numeric(10,5), flag_code char(2)
);
create table guildhall.document (
  document_id bigint primary key, project_id integer not null, title varchar(254) not null, mime_type char(30), body text, content bytea,
  byte_count bigint, create_date timestamp(3) default current_timestamp
);
create table guildhall.access (
  user_id numeric(10), path varchar(128), role varchar(20), "timestamp" timestamp(3) default current_timestamp
);
create table guildhall."group" (
  group_id numeric(12) primary key, "desc" varchar(254), "default" smallint default 0, "from" date, value varchar(500)
);
create table guildhall.user_group_xref (
  group_id numeric(12), user_id numeric(10), primary key (user_id, group_id)
);
create table guildhall.id_sequence (
  name varchar(255) primary key, next_block_start bigint not null, block_size integer not null, exhausted smallint not null default 0
)`

/** Posts every sample in the order of the names, each over a connection of its own. */
export async function postSamples(post: Post): Promise<SampleAnswer[]> {
  const answers: SampleAnswer[] = []
  for (const name of (await readdir(FOLDER)).sort()) {
    const bytes = await readFile(join(FOLDER, name))
    const bodies = name.endsWith('.ndjson') ? bytes.toString('utf8').split('\n').filter((line) => line !== '') : [bytes]
    for (const [at, body] of bodies.entries()) {
      answers.push({ name: bodies.length === 1 ? name : `${name}:${at + 1}`, answer: await post('/events', body) })
    }
  }
  return answers
}

/** What must stand in the target once the samples are applied, whatever the order they came in; the facts that do not. */
export async function wrongFacts(sql: Sql): Promise<string[]> {
  const [facts] = await sql<Record<string, boolean | null>[]>`
    select not exists (select from guildhall.user_account where user_id = 7000001) as "user 7000001 was deleted",
           (select next_block_start = 30 from guildhall.id_sequence where name = 'hot_seq') as "hot_seq is 30: posted as 3, 2, 1, 4",
           (select next_block_start = 20 from guildhall.id_sequence where name = 'tick') as "tick is 20: .5Z is 5 microseconds",
           not exists (select from guildhall.id_sequence where name = 'gone') as "gone is not there: its insert came after its delete",
           (select next_block_start = 110 from guildhall.id_sequence where name = 'tape_seq') as "tape_seq is 110: the oldest dialect",
           not exists (select from guildhall."group" where group_id = 901) as "group 901 has moved",
           exists (select from guildhall."group" where group_id = 991 and "from" = '2019-09-18') as "group 991 is there",
           (select count(*) = 1 from guildhall.access where user_id is null and "timestamp" is null) as "one row of nulls, without the column's default",
           exists (select from guildhall.user_group_xref where group_id = 12 and user_id = 132456) as "the post with a relay's fields is applied",
           (select count(distinct content) = 1 and count(*) = 3 from guildhall.document where octet_length(content) = 70) as "hex, base64 and literal are the same bytes"`
  return Object.entries(facts ?? {}).flatMap(([fact, holds]) => (holds === true ? [] : [`not so: ${fact}`]))
}
