//! Request bodies that are read whole before anything is decided about them, within limits on size, time and shared
//! memory.

mod budget;

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::{Instant, sleep_until};

pub use self::budget::{ByteBudget, Room, Share};
use self::budget::{Reservation, counted};
use super::error::find;
use crate::{
    body::BodyError,
    config::raw,
    error::{Reason, Rejection},
    lock::lock,
};

/// The initial capacity for a body of unknown length.
const FIRST_ROOM: usize = 8 << 10;

/// Limits on a buffered body.
#[derive(Clone, Copy, Debug)]
pub struct BufferLimits {
    /// Size in bytes. Larger bodies are refused with 413.
    pub max: usize,
    /// How long it may take, in addition to the time that `min_rate` gives.
    pub timeout: Duration,
    /// The slowest accepted rate in bytes per second. Zero: bytes give no additional time.
    pub min_rate: u64,
}

impl BufferLimits {
    pub fn new(limits: &raw::Limits, max: usize) -> Self {
        Self { max, timeout: limits.body_timeout.get(), min_rate: limits.body_min_rate.0 }
    }

    /// For senders with little time: `timeout` is the total time.
    pub fn whole(limits: &raw::Limits, max: usize) -> Self {
        Self { min_rate: 0, ..Self::new(limits, max) }
    }

    fn time_for(&self, received: usize) -> Duration {
        match (received as u64).checked_div(self.min_rate) {
            Some(seconds) => self.timeout.saturating_add(Duration::from_secs(seconds)),
            None => self.timeout,
        }
    }
}

/// Reads a body whole. The body is not polled before the call, so that a client which waits for `100 Continue` sends
/// nothing until then. Trailers are dropped.
///
/// Fails with 413 beyond the size limit (at once if the length is declared), 408 when it arrives too slowly, 503 when
/// the budget has no room for this share, and 400 when the client aborts.
pub async fn read<B>(body: B, limits: BufferLimits, budget: &ByteBudget, share: Share) -> Result<Bytes, Rejection>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (bytes, reservation) = read_into(body, limits, budget.reservation(share)).await?;
    Ok(counted(bytes, reservation))
}

/// As [`read`], for a body that is still to prove who sent it.
pub async fn read_unproven<B>(
    body: B,
    limits: BufferLimits,
    budget: &ByteBudget,
    share: Share,
) -> Result<Unproven, Rejection>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (bytes, reservation) = read_into(body, limits, budget.reservation(share)).await?;
    let reservation = Arc::new(Mutex::new(reservation));
    Ok(Unproven { bytes: counted(bytes, Arc::clone(&reservation)), reservation })
}

/// A body that has not proved yet who sent it.
#[derive(Debug)]
pub struct Unproven {
    bytes: Bytes,
    reservation: Arc<Mutex<Reservation>>,
}

impl Unproven {
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The body, now that its sender is known, as which it is counted from here on.
    pub fn proven(self) -> Bytes {
        lock(&self.reservation).prove();
        self.bytes
    }
}

async fn read_into<B>(
    body: B,
    limits: BufferLimits,
    mut reservation: Reservation,
) -> Result<(Vec<u8>, Reservation), Rejection>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || Rejection::body_too_large(u64::try_from(limits.max).unwrap_or(u64::MAX));
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if declared > limits.max {
        return Err(too_large());
    }
    let mut body = body;
    let mut bytes = Vec::new();
    let start = Instant::now();
    let mut last = start;
    while let Some(frame) =
        next_frame(&mut body, (start + limits.time_for(bytes.len())).min(last + limits.timeout)).await?
    {
        last = Instant::now();
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > limits.max - bytes.len() {
            return Err(too_large());
        }
        make_room(&mut bytes, data.len(), declared, limits.max, &mut reservation)?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, reservation))
}

async fn next_frame<B>(body: &mut B, deadline: Instant) -> Result<Option<Frame<Bytes>>, Rejection>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut next = pin!(poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)));
    // Most frames have already arrived; only waiting for one costs a timer.
    let frame = match poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await {
        Poll::Ready(frame) => frame,
        Poll::Pending => {
            tokio::select! {
                frame = next => frame,
                () = sleep_until(deadline) => {
                    return Err(Rejection::new(Reason::BodyTimeout, "the body came too slowly").fix("send it faster"));
                }
            }
        }
    };
    frame.transpose().map_err(|error| {
        let error = error.into();
        // The route's own limit may be smaller than this one, and is then exceeded first.
        let rejection = match find::<BodyError>(&*error) {
            Some(BodyError::TooLarge(max)) => Rejection::body_too_large(*max),
            _ => Rejection::new(Reason::BadRequest, "the body broke off before its end").fix("send the whole body"),
        };
        rejection.because(error)
    })
}

/// Doubles the capacity as bytes arrive, so that a merely declared length costs nothing.
fn make_room(
    bytes: &mut Vec<u8>,
    more: usize,
    declared: usize,
    max: usize,
    reservation: &mut Reservation,
) -> Result<(), Rejection> {
    let needed = bytes.len() + more;
    if needed <= bytes.capacity() {
        return Ok(());
    }
    let ceiling = if declared > 0 { declared } else { max };
    let capacity = needed.max((bytes.capacity() * 2).max(FIRST_ROOM).min(ceiling));
    // Both buffers exist until the bytes are moved.
    let moving = if reservation.grow_to(capacity) { reservation.beside(bytes.capacity()) } else { None };
    let Some(_moving) = moving else {
        return Err(
            Rejection::new(Reason::Overloaded, "too many bodies are being read at once").fix("try again in a moment")
        );
    };
    bytes.reserve_exact(capacity - bytes.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, task::Context};

    use http::StatusCode;
    use http_body::SizeHint;

    use super::*;

    /// A body in frames, each after a pause; then it ends, or hangs.
    struct Script {
        frames: Vec<Bytes>,
        pause: Duration,
        hangs: bool,
        declared: Option<u64>,
        timer: Option<Pin<Box<tokio::time::Sleep>>>,
        polled: bool,
    }

    fn script(frames: Vec<usize>) -> Script {
        let frames = frames.into_iter().rev().map(|length| Bytes::from(vec![7; length])).collect();
        Script { frames, pause: Duration::ZERO, hangs: false, declared: None, timer: None, polled: false }
    }

    impl Body for &mut Script {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.polled = true;
            let pause = self.pause;
            if !pause.is_zero() {
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
                std::task::ready!(timer.as_mut().poll(cx));
                self.timer = None;
            }
            match self.frames.pop() {
                Some(frame) => Poll::Ready(Some(Ok(Frame::data(frame)))),
                None if self.hangs => Poll::Pending,
                None => Poll::Ready(None),
            }
        }

        fn size_hint(&self) -> SizeHint {
            self.declared.map_or_else(SizeHint::default, SizeHint::with_exact)
        }
    }

    const LIMITS: BufferLimits = BufferLimits { max: 100_000, timeout: Duration::from_secs(30), min_rate: 1024 };

    #[tokio::test]
    async fn a_body_is_read_whole_up_to_its_limit_and_not_a_byte_further() {
        let budget = ByteBudget::new(1 << 20);
        let bytes = read(&mut script(vec![60_000, 40_000]), LIMITS, &budget, Share::Known).await.unwrap();
        assert_eq!(bytes.len(), 100_000);
        let error = read(&mut script(vec![60_000, 40_001]), LIMITS, &budget, Share::Known).await.unwrap_err();
        assert_eq!(error.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert!(read(&mut script(vec![]), LIMITS, &budget, Share::Known).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_declared_length_beyond_the_limit_is_refused_before_a_byte_is_asked_for() {
        let budget = ByteBudget::new(1 << 20);
        let mut body = script(vec![10]);
        body.declared = Some(100_001);
        let error = read(&mut body, LIMITS, &budget, Share::Known).await.unwrap_err();
        assert_eq!(error.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert!(!body.polled);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn the_budget_is_given_back_with_the_last_copy_of_the_bytes() {
        let budget = ByteBudget::new(100_000);
        let first = read(&mut script(vec![60_000]), LIMITS, &budget, Share::Known).await.unwrap();
        assert!(budget.used() >= 60_000);
        let error = read(&mut script(vec![60_000]), LIMITS, &budget, Share::Known).await.unwrap_err();
        assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
        let copy = first.slice(10..20);
        drop(first);
        assert!(budget.used() >= 60_000);
        drop(copy);
        assert_eq!(budget.used(), 0);
        assert!(read(&mut script(vec![60_000]), LIMITS, &budget, Share::Known).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_counts_towards_its_address_until_its_sender_is_verified() {
        let budget = ByteBudget::new(800_000);
        let stranger = Share::Unproven(Some([192, 0, 2, 1].into()));
        let read = async |length: usize| {
            read_unproven(&mut script(vec![length]), LIMITS, &budget, stranger.clone())
                .await
                .map_err(|error| error.status())
        };
        let first = read(60_000).await.unwrap();
        let second = read(60_000).await.unwrap();
        assert_eq!(read(60_000).await.map(drop), Err(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(first.bytes().len(), 60_000);
        let first = first.proven();
        let third = read(60_000).await.unwrap();
        assert_eq!((first.len(), budget.used()), (60_000, 180_000));
        drop((first, second, third));
        assert_eq!(budget.used(), 0);
    }

    /// Regression: a growing body was refused with 503 although there was room, because another body from its address
    /// was being read.
    #[tokio::test(start_paused = true)]
    async fn a_large_body_is_read_while_a_small_one_of_its_address_is_in_progress() {
        let budget = ByteBudget::new(500_000);
        let share = Share::Unproven(Some([192, 0, 2, 1].into()));
        let mut large = script(vec![40_000, 40_000]);
        large.pause = Duration::from_secs(2);
        let mut small = script(vec![10]);
        small.hangs = true;
        let (large, small) =
            tokio::join!(read(&mut large, LIMITS, &budget, share.clone()), read(&mut small, LIMITS, &budget, share),);
        assert_eq!(large.unwrap().len(), 80_000);
        assert_eq!(small.unwrap_err().status(), StatusCode::REQUEST_TIMEOUT);
    }

    /// While a body grows, it exists twice for a moment; that had exceeded the limit.
    #[tokio::test]
    async fn a_body_that_grows_takes_both_rooms_of_the_budget() {
        // Three eighths of it are reserved for others.
        for (budget, refused) in [(191_992, Some(StatusCode::SERVICE_UNAVAILABLE)), (192_000, None)] {
            let budget = ByteBudget::new(budget);
            let outcome = read(&mut script(vec![40_000, 40_000]), LIMITS, &budget, Share::Known).await;
            assert_eq!(budget.used(), if refused.is_some() { 0 } else { 80_000 });
            assert_eq!(outcome.err().map(|error| error.status()), refused);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_only_declared_takes_none_of_the_budget() {
        let budget = ByteBudget::new(1 << 20);
        let mut body = script(vec![10]);
        body.declared = Some(90_000);
        body.hangs = true;
        let limits = LIMITS;
        let reader = {
            let budget = budget.clone();
            tokio::spawn(async move { read(&mut body, limits, &budget, Share::Known).await.map(drop) })
        };
        tokio::task::yield_now().await;
        assert!(budget.used() <= FIRST_ROOM);
        assert_eq!(reader.await.unwrap().unwrap_err().status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_has_the_time_that_the_slowest_rate_gives() {
        let budget = ByteBudget::new(1 << 20);
        // 40 s for 40 KiB: 1 KiB per second, and 30 s in addition.
        let mut enough = script(vec![1024; 40]);
        enough.pause = Duration::from_secs(1);
        assert_eq!(read(&mut enough, LIMITS, &budget, Share::Known).await.unwrap().len(), 40 << 10);
        let mut too_slow = script(vec![1; 40]);
        too_slow.pause = Duration::from_secs(1);
        let error = read(&mut too_slow, LIMITS, &budget, Share::Known).await.unwrap_err();
        assert_eq!(error.status(), StatusCode::REQUEST_TIMEOUT);
    }

    /// Its bytes had earned it time to occupy memory without sending more.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_after_a_fast_start_gets_no_extra_time() {
        let budget = ByteBudget::new(1 << 20);
        let mut body = script(vec![90_000]);
        body.hangs = true;
        let start = Instant::now();
        assert_eq!(
            read(&mut body, LIMITS, &budget, Share::Known).await.unwrap_err().status(),
            StatusCode::REQUEST_TIMEOUT
        );
        assert_eq!(start.elapsed().as_secs(), LIMITS.timeout.as_secs());
        assert_eq!(budget.used(), 0);
    }
}
