package ledger

// TrustedRoles begins a statement about schema $1 with the table "trusted": the oids of the roles whose relations a login
// may read, write and attach there. They are the login's own role, those that it is a member of, and who may do anything
// in the schema or the database anyway: their owners and superusers. A superuser counts as a member of every role, which says
// nothing about these. The files of package migrations say the same.
//
// A membership counts only if it was given by one of these masters, or up to PostgreSQL 15 by a role with CREATEROLE, which
// can do anything there. Others can make a login a member of their own roles: up to PostgreSQL 14 of themselves ("grant
// mallory to owner"), and in each version of a role of which they have the ADMIN OPTION.
const TrustedRoles = `with recursive masters as (
	select r.oid from pg_roles r, pg_namespace n, pg_database d
	where n.nspname = $1 and d.datname = current_database()
		and (pg_has_role(r.oid, n.nspowner, 'usage') or pg_has_role(r.oid, d.datdba, 'usage'))),
mine as (
	select oid from pg_roles where rolname = current_user
	union
	select m.roleid from mine join pg_auth_members m on m.member = mine.oid join pg_roles g on g.oid = m.grantor
	where not (select rolsuper from pg_roles where rolname = current_user) and pg_has_role(current_user, m.roleid, 'usage')
		and (g.oid in (select oid from masters) or g.rolcreaterole and current_setting('server_version_num')::int < 160000)),
trusted as (select oid from masters union select oid from mine)
`
