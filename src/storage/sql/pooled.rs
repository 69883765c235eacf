//! A transaction on a pooled connection, which goes back to the pool only where its end was answered:
//! what is in doubt is closed, and a server that answers nothing any more holds nobody up.
//!
//! Does not know statements, nor which database it is.

use std::future::{Future, poll_fn};
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::{Database, Executor, IntoArguments, Pool};

use super::session::{SqlError, TextRow, Within};

/// How long an answer may take. A server that went away between two packets never answers, and the
/// network does not tell for a quarter of an hour.
const ANSWER: Duration = Duration::from_secs(60);
/// So many bytes of an answer that nobody wants any more are read and thrown away: a connection is
/// worth that, and no more.
const UNWANTED: usize = 8 << 20;

/// How a row is read.
pub(super) type Texts<D> = fn(&<D as Database>::Row) -> Result<TextRow, sqlx::Error>;

/// What a server answers, or that it did not.
pub(super) async fn answered<T>(
    asked: impl Future<Output = Result<T, SqlError>>,
) -> Result<T, SqlError> {
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(SqlError::connection(format!("no answer within {} s", ANSWER.as_secs()))),
    }
}

/// The first rows of an answer, no further than the one with which they are larger than `most` bytes;
/// and whether the answer was read to its end. Of the others one at a time is in memory.
pub(super) async fn within<'q, D, A>(
    connection: &mut D::Connection,
    query: Query<'q, D, A>,
    texts: Texts<D>,
    most: usize,
) -> Result<(Within, bool), sqlx::Error>
where
    D: Database,
    A: IntoArguments<D> + 'q,
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let mut answer = query.fetch(connection);
    let (mut within, mut size) = (Within::default(), 0_usize);
    while let Some(row) = poll_fn(|context| answer.as_mut().poll_next(context)).await {
        let row = texts(&row?)?;
        let bytes: usize = row.iter().flatten().map(String::len).sum();
        if size <= most {
            within.rows.push(row);
        } else {
            within.cut = true;
            if size.saturating_sub(most) > UNWANTED {
                return Ok((within, false));
            }
        }
        size = size.saturating_add(bytes);
    }
    Ok((within, true))
}

/// A transaction.
pub(super) struct Pooled<D: Database> {
    connection: PoolConnection<D>,
    /// Its end was answered.
    ended: bool,
    /// The server still sends an answer that nobody reads, of whatever size.
    sending: bool,
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
        let connection = pool.acquire().await?;
        let mut begun = Self { connection, ended: false, sending: false };
        begun.run("BEGIN").await?;
        Ok(begun)
    }

    /// As [`within`].
    pub async fn within<'q, A>(
        &mut self,
        query: Query<'q, D, A>,
        texts: Texts<D>,
        most: usize,
    ) -> Result<Within, sqlx::Error>
    where
        A: IntoArguments<D> + 'q,
    {
        let (found, whole) = within::<D, A>(&mut self.connection, query, texts, most).await?;
        self.sending |= !whole;
        Ok(found)
    }

    /// Undoes it. What cannot be undone now is undone when its connection ends.
    pub async fn rollback(mut self) {
        if self.sending {
            // the rest of the answer would come first
            return;
        }
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
