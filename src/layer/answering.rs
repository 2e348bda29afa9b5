//! The three futures layers are made of, so that a layer needs no box of its own: [`Touching`] for one that adds to its
//! answer, [`Answering`] for one that makes another thing of it, [`Gated`] for one that may refuse.
//!
//! A box for each layer would cost an allocation and a move of everything below it, about 600 instructions; these nest
//! by value. They hold no logic: what a layer does is in its [`Touch`] or [`Act`], of which [`Keep`] is the one that
//! several share.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::flight::reply::Reply;

/// What a layer adds to the answer from inside, where it lies: answers are large, and most layers only hang something on
/// them. Dropped instead, nobody waits for the answer any more.
pub trait Touch<T> {
    /// Sees the answer, once.
    fn touch(self, answer: &mut T);
}

pin_project! {
    /// The future inside, then the layer's touch.
    ///
    /// # Cancel safety
    /// Dropping it drops the future inside, and then the touch without having asked it.
    pub struct Touching<F, A> {
        #[pin]
        inside: F,
        touch: Option<A>,
    }
}

impl<F, A> Touching<F, A> {
    /// `touch` on what `inside` answers.
    pub fn new(inside: F, touch: A) -> Self {
        Self { inside, touch: Some(touch) }
    }
}

impl<F: Future, A: Touch<F::Output>> Future for Touching<F, A> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.touch.is_none() {
            // Finished: a future is not asked again, and one that is has nothing to say.
            return Poll::Pending;
        }
        // One local from here to the end, so that the answer is written where it will stay.
        let mut polled = this.inside.poll(cx);
        if let Poll::Ready(answer) = &mut polled
            && let Some(touch) = this.touch.take()
        {
            touch.touch(answer);
        }
        polled
    }
}

/// What a layer makes of the answer from inside. Dropped instead, nobody waits for the answer any more.
pub trait Act<T> {
    /// What it makes of the answer.
    type Output;

    /// Takes the answer, once.
    fn act(self, answer: T) -> Self::Output;
}

pin_project! {
    /// The future inside, then the layer's act.
    ///
    /// # Cancel safety
    /// Dropping it drops the future inside, and then the act without having asked it.
    pub struct Answering<F, A> {
        #[pin]
        inside: F,
        act: Option<A>,
    }
}

impl<F, A> Answering<F, A> {
    /// `act` on what `inside` answers.
    pub fn new(inside: F, act: A) -> Self {
        Self { inside, act: Some(act) }
    }
}

impl<F: Future, A: Act<F::Output>> Future for Answering<F, A> {
    type Output = A::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<A::Output> {
        let this = self.project();
        if this.act.is_none() {
            // Finished: a future is not asked again, and one that is has nothing to say.
            return Poll::Pending;
        }
        let answer = ready!(this.inside.poll(cx));
        this.act.take().map_or(Poll::Pending, |act| Poll::Ready(act.act(answer)))
    }
}

pin_project! {
    /// The future inside, or a refusal that needed none.
    pub struct Gated<F, E> {
        #[pin]
        way: Way<F, E>,
    }
}

pin_project! {
    #[project = WayProjection]
    enum Way<F, E> {
        Open { #[pin] inside: F },
        Shut { error: Option<E> },
    }
}

impl<F, E> Gated<F, E> {
    /// Goes on inside.
    pub fn open(inside: F) -> Self {
        Self { way: Way::Open { inside } }
    }

    /// Refuses.
    pub fn shut(error: E) -> Self {
        Self { way: Way::Shut { error: Some(error) } }
    }
}

impl<F, T, E> Future for Gated<F, E>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, E>> {
        match self.project().way.project() {
            WayProjection::Open { inside } => inside.poll(cx),
            WayProjection::Shut { error } => error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
        }
    }
}

/// Keeps a permit for as long as the reply lasts, or for as long as it is waited for.
pub struct Keep<T>(pub T);

impl<T: Send + 'static, E> Touch<Result<Reply, E>> for Keep<T> {
    fn touch(self, answer: &mut Result<Reply, E>) {
        if let Ok(reply) = answer {
            reply.body.on_end(move |_| drop(self.0));
        }
    }
}
