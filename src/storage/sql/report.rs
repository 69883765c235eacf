//! What a start would run, and what stands in its way: told, not done.
//!
//! Does not know how it is printed.

use super::contact::misfit_text;
use super::dialect::Dialect;
use super::schema::{Difference, compare};
use super::session::{Backend, Param, Session, SqlError};
use super::table::{Table, plan, reading_index};
use super::{Inner, SqlStorage};
use crate::channel::Registry;
use crate::storage::StorageError;

/// What a start would do about one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableReport {
    /// Its name.
    pub table: String,
    /// What a start would run.
    pub statements: Vec<String>,
    /// Why it would not write to the table, in one sentence.
    pub misfit: Option<String>,
    /// What the table has more than ours, which is left alone.
    pub extras: Vec<String>,
}

/// Everything that a start on an empty database runs.
#[must_use]
pub fn ddl(dialect: &dyn Dialect, registry: &Registry) -> Vec<String> {
    plan(registry).iter().flat_map(|table| whole(dialect, table)).collect()
}

fn whole(dialect: &dyn Dialect, table: &Table) -> Vec<String> {
    let mut statements = dialect.create_table(table);
    statements.extend(reading_index(table).map(|i| dialect.create_index_online(table, &i)));
    statements
}

impl<B: Backend> SqlStorage<B> {
    /// What a start would do, table by table.
    ///
    /// # Errors
    /// Where the database cannot be looked at.
    pub async fn report(&self) -> Result<Vec<TableReport>, StorageError> {
        let report = self.0.report().await;
        report.map_err(|e| StorageError::retry(e.code, e.text))
    }

    /// Everything that a start on an empty database runs.
    #[must_use]
    pub fn ddl(&self) -> Vec<String> {
        ddl(self.0.backend.dialect(), &self.0.options.registry)
    }
}

impl<B: Backend> Inner<B> {
    async fn report(&self) -> Result<Vec<TableReport>, SqlError> {
        let mut session = self.backend.begin().await?;
        let mut all = Vec::new();
        for table in plan(&self.options.registry) {
            all.push(self.report_table(&mut session, &table).await?);
        }
        session.rollback().await;
        Ok(all)
    }

    async fn report_table(
        &self,
        session: &mut B::Session,
        table: &Table,
    ) -> Result<TableReport, SqlError> {
        let dialect = self.backend.dialect();
        let mut report = TableReport { table: table.name.clone(), ..TableReport::default() };
        let columns = self.columns_of(session, &table.name).await?;
        if columns.is_empty() {
            report.statements = whole(dialect, table);
            return Ok(report);
        }
        let name = [Param::Text(table.name.as_str().into())];
        let key = session.rows(dialect.introspect_key(), &name).await?;
        let key: Vec<String> = key.into_iter().flatten().flatten().collect();
        let same = |ty, name: &str| dialect.same_type(ty, name);
        let difference: Difference = compare(table, &columns, &key, &same);
        let add = difference.to_add.iter().map(|column| dialect.add_column(table, column));
        report.statements.extend(add);
        for index in table.indexes.iter().cloned().chain(reading_index(table)) {
            let name = [Param::Text(index.name.as_str().into())];
            let rows = session.rows(dialect.introspect_index(), &name).await?;
            if rows.is_empty() {
                report.statements.push(dialect.create_index_online(table, &index));
            }
        }
        report.misfit = (!difference.misfits.is_empty()).then(|| misfit_text(table, &difference));
        report.extras = difference.extras;
        Ok(report)
    }
}
