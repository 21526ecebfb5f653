//! Unary calls of gRPC over a Unix socket: HTTP/2, one message in each direction, and the status in the trailers
//! (`PROTOCOL-HTTP2.md` of gRPC).

use crate::model::error::{Context, Error, Result};
use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, client, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;

/// The largest message, which normally has some hundred bytes.
const LONGEST: usize = 1 << 16;
const CONTENT: &str = "application/grpc";
/// Between two looks whether a call is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Why a call failed: a code of gRPC, and a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    pub code: u8,
    pub text: String,
}

impl Status {
    pub const INVALID_ARGUMENT: u8 = 3;
    pub const NOT_FOUND: u8 = 5;
    pub const ABORTED: u8 = 10;
    pub const UNIMPLEMENTED: u8 = 12;
    pub const INTERNAL: u8 = 13;

    pub fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// Set when the caller no longer waits.
pub type IsGone = Arc<AtomicBool>;

/// What a server does. It is called in threads that may wait.
pub trait Service: Send + Sync + 'static {
    /// # Errors
    /// The call fails.
    fn call(self: &Arc<Self>, method: &str, message: Bytes, is_gone: &IsGone) -> std::result::Result<Vec<u8>, Status>;
}

/// # Errors
/// The message is of another type.
pub fn read<T: Message + Default>(message: Bytes) -> std::result::Result<T, Status> {
    T::decode(message).map_err(|e| Status::new(Status::INVALID_ARGUMENT, e.to_string()))
}

/// Serves the calls of one connection until it ends.
///
/// # Errors
/// The connection broke, or the peer does not speak HTTP/2.
pub async fn serve(stream: UnixStream, service: Arc<impl Service>) -> std::result::Result<(), h2::Error> {
    let mut connection = server::handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        let service = service.clone();
        tokio::spawn(async move {
            if let Err(e) = answer(request, respond, service).await {
                tracing::debug!(error = %e, "a call was not answered");
            }
        });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    service: Arc<impl Service>,
) -> std::result::Result<(), h2::Error> {
    let method = request.uri().path().to_owned();
    let body = receive(&mut request.into_body()).await?;
    let is_gone = IsGone::default();
    let told = is_gone.clone();
    let work = tokio::task::spawn_blocking(move || match unframed(body) {
        Some(message) => service.call(&method, message, &told),
        None => Err(Status::new(Status::INTERNAL, "the request is no single message without compression")),
    });
    let answer = tokio::select! {
        done = work => done.unwrap_or_else(|_| Err(Status::new(Status::INTERNAL, "netpath has a bug: the call panicked"))),
        _ = poll_fn(|context| respond.poll_reset(context)) => {
            is_gone.store(true, Ordering::Relaxed);
            return Ok(());
        }
    };
    let mut response = Response::new(());
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(CONTENT));
    match answer {
        Ok(message) => {
            let mut stream = respond.send_response(response, false)?;
            stream.send_data(framed(&message), false)?;
            stream.send_trailers(trailers(None))
        }
        Err(status) => {
            response.headers_mut().extend(trailers(Some(&status)));
            respond.send_response(response, true).map(drop)
        }
    }
}

/// Calls `method` of the server at `socket`, and gives up after `limit` or when `stop` says so; the server notices.
///
/// # Errors
/// The outer: there is no server ([`is_absent`]), or it ended before it answered. The inner: it fails, or does not answer in time.
pub fn call<T: Message + Default>(
    socket: &Path,
    method: &str,
    message: &impl Message,
    limit: Duration,
    stop: impl Fn() -> bool,
) -> std::io::Result<Result<T>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = UnixStream::connect(socket).await?;
        let what = || "get DHCP lease".to_owned();
        let stopped = async {
            while !stop() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let bytes = tokio::select! {
            called = exchange(stream, method, framed(&message.encode_to_vec())) => called,
            () = tokio::time::sleep(limit) => {
                Ok(Err(Error::new("the DHCP proxy").because(format!("it did not answer within {:.1} s", limit.as_secs_f32()))))
            }
            () = stopped => Ok(Err(Error::new("interrupted by a signal"))),
        };
        match bytes {
            Ok(bytes) => Ok(bytes.and_then(|bytes| T::decode(bytes).context(what))),
            // The connection has ended: so has the server.
            Err(e) if e.is_io() || e.is_go_away() => Err(std::io::Error::new(ErrorKind::ConnectionAborted, e)),
            Err(e) => Ok(Err(Error::new("cannot talk to the DHCP proxy").because(e))),
        }
    })
}

/// Whether a call has met no server: there is no socket, or none listens.
pub fn is_absent(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

/// The outer error is the connection's.
async fn exchange(stream: UnixStream, method: &str, message: Bytes) -> std::result::Result<Result<Bytes>, h2::Error> {
    let what = || "cannot talk to the DHCP proxy".to_owned();
    let (mut sender, connection) = client::handshake(stream).await?;
    // It ends with the runtime.
    tokio::spawn(connection);
    let request = Request::post(format!("http://localhost{method}"))
        .header(http::header::CONTENT_TYPE, CONTENT)
        .header(http::header::TE, "trailers")
        .body(())
        .context(what);
    let request = match request {
        Ok(request) => request,
        Err(e) => return Ok(Err(e)),
    };
    let (response, mut stream) = sender.send_request(request, false)?;
    stream.send_data(message, true)?;
    let (head, mut body) = response.await?.into_parts();
    let answer = receive(&mut body).await?;
    let trailers = body.trailers().await?.unwrap_or_default();
    let status = [&trailers, &head.headers].into_iter().find_map(status_of);
    Ok(match status {
        None => Err(Error::new(what()).because("its answer has no status")),
        Some(Status { code: 0, .. }) => {
            unframed(answer).ok_or_else(|| Error::new(what()).because("its answer is no message"))
        }
        Some(Status { text, .. }) => Err(Error::new(text)),
    })
}

async fn receive(body: &mut RecvStream) -> std::result::Result<Bytes, h2::Error> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        if bytes.len() + chunk.len() > LONGEST {
            return Err(h2::Reason::ENHANCE_YOUR_CALM.into());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// A byte for compression, and the length.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

/// The only message of a body.
fn unframed(body: Bytes) -> Option<Bytes> {
    let length = u32::from_be_bytes(body.get(1..5)?.try_into().ok()?);
    (body.first() == Some(&0) && body.len() == 5 + length as usize).then(|| body.slice(5..))
}

/// `None`: success.
fn trailers(status: Option<&Status>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", status.map_or(0, |s| u16::from(s.code)).into());
    if let Some(text) = status.and_then(|s| HeaderValue::from_str(&escaped(&s.text)).ok()) {
        headers.insert("grpc-message", text);
    }
    headers
}

fn status_of(headers: &HeaderMap) -> Option<Status> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let text = headers.get("grpc-message").map(|v| unescaped(v.as_bytes())).unwrap_or_default();
    Some(Status { code, text })
}

/// Percent-encoded, as `grpc-message` is.
fn escaped(text: &str) -> String {
    let plain = |b: &u8| matches!(b, b' '..=b'~') && *b != b'%';
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn unescaped(text: &[u8]) -> String {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let hex = if *first == b'%' { tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()) } else { None };
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_errors_pass_unchanged() {
        for text in ["plain", "100 % of „eth0“\n", "%", "%zz", "a%41"] {
            assert_eq!(text, unescaped(escaped(text).as_bytes()));
        }
        assert_eq!("no server", unescaped(b"no%20server"), "as tonic sends it");
    }

    #[test]
    fn a_body_is_one_message() {
        assert_eq!(Some(Bytes::from_static(b"abc")), unframed(framed(b"abc")));
        for bad in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x02a", b"\x01\0\0\0\x01a", b"\0\0\0\0\x01ab"] {
            assert_eq!(None, unframed(Bytes::copy_from_slice(bad)), "{bad:?}");
        }
    }
}
