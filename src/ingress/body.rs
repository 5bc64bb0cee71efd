//! Reading a request's body, with a limit.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;

/// A client that has not sent its whole body by then is refused.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// How much of a body that is too long is read before its connection is ended: more than an honest mistake sends.
const DRAIN_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    /// Over the limit, as declared or as read.
    TooLarge,
    /// It did not arrive whole.
    Broken,
    /// It did not arrive in time.
    Slow,
}

/// The length that a request says its body has.
pub(super) fn declared(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a body of at most `limit` bytes whole. One that is too long is read on and thrown away for a while: whoever is
/// still sending when the connection ends never sees the answer.
pub(super) async fn read(headers: &HeaderMap, mut body: Body, limit: usize) -> Result<Bytes, BodyError> {
    let declared = declared(headers);
    let too_long = declared.is_some_and(|length| length > limit);
    if too_long && (headers.contains_key(header::EXPECT) || declared > Some(DRAIN_LIMIT_BYTES)) {
        return Err(BodyError::TooLarge);
    }
    let (mut kept, mut length) = (BytesMut::new(), 0);
    let reading = async {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
            length += data.len();
            if length > DRAIN_LIMIT_BYTES {
                break;
            }
            if length > limit {
                kept = BytesMut::new();
            } else if !too_long {
                kept.extend_from_slice(&data);
            }
        }
        Ok(())
    };
    let read = tokio::time::timeout(TIME_LIMIT, reading).await;
    if too_long || length > limit {
        return Err(BodyError::TooLarge);
    }
    read.map_err(|_| BodyError::Slow)??;
    Ok(kept.freeze())
}

/// Takes a body out of the way of the answer, and of the next request on the connection. Who asks first sends nothing.
pub(super) async fn drop_unread(headers: &HeaderMap, body: Body, limit: usize) {
    if !headers.contains_key(header::EXPECT) {
        let _ = read(headers, body, limit).await;
    }
}
