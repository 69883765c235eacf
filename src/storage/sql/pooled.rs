//! A transaction on a pooled connection, which goes back to the pool only where its end was answered:
//! what is in doubt is closed, and a server that answers nothing any more holds nobody up.
//!
//! Does not know statements, nor which database it is.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Database, Executor, Pool};

use super::session::SqlError;

/// How long an answer may take. A server that went away between two packets never answers, and the
/// network does not tell for a quarter of an hour.
const ANSWER: Duration = Duration::from_secs(60);

/// What a server answers, or that it did not.
pub(super) async fn answered<T>(
    asked: impl Future<Output = Result<T, SqlError>>,
) -> Result<T, SqlError> {
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(SqlError::connection(format!("no answer within {} s", ANSWER.as_secs()))),
    }
}

/// A transaction.
pub(super) struct Pooled<D: Database> {
    connection: PoolConnection<D>,
    /// Its end was answered.
    ended: bool,
}

impl<D: Database> Drop for Pooled<D> {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

impl<D: Database> Deref for Pooled<D> {
    type Target = D::Connection;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl<D: Database> DerefMut for Pooled<D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

impl<D: Database> Pooled<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    /// Takes a connection and begins.
    pub async fn begin(pool: &Pool<D>) -> Result<Self, sqlx::Error> {
        let mut begun = Self { connection: pool.acquire().await?, ended: false };
        begun.run("BEGIN").await?;
        Ok(begun)
    }

    /// Undoes it. What cannot be undone now is undone when its connection ends.
    pub async fn rollback(mut self) {
        let undone = tokio::time::timeout(ANSWER, self.run("ROLLBACK")).await;
        self.ended = matches!(undone, Ok(Ok(())));
    }

    /// Makes it durable.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.run("COMMIT").await?;
        self.ended = true;
        Ok(())
    }

    async fn run(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(sql).execute(&mut *self.connection).await.map(drop)
    }
}
