//! A wire between Doorward and a real server, which can be cut and restored.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Ends with its owner.
pub struct Wire {
    address: SocketAddr,
    whole: watch::Sender<bool>,
    /// Whether responses are held back.
    held: watch::Sender<bool>,
    /// Connections up to this number forward nothing.
    silent: watch::Sender<usize>,
    taken: Arc<AtomicUsize>,
}

impl Wire {
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ((whole, watched), (silent, silenced)) = (watch::channel(true), watch::channel(0));
        let (held, holds) = watch::channel(false);
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&taken);
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
                let (mut watched, mut silenced, mut holds) = (watched.clone(), silenced.clone(), holds.clone());
                if !*watched.borrow() {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    let cut = async { _ = watched.wait_for(|whole| !whole).await };
                    // Both ends stay open, and receive nothing.
                    let pass = async {
                        tokio::select! {
                            () = pass_on(&mut client, &mut server, &mut holds) => {}
                            () = async { _ = silenced.wait_for(|silent| number <= *silent).await } => pending().await,
                        }
                    };
                    tokio::select! {
                        () = pass => {}
                        () = cut => {}
                    }
                });
            }
        });
        Self { address, whole, held, silent, taken }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections, and accepts no others.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// Silently stops forwarding on the existing connections. New ones work as before.
    pub fn silence(&self) {
        self.silent.send_replace(self.taken.load(Ordering::SeqCst));
    }

    /// Forwards requests, and holds responses back until [`Self::release`].
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    pub fn release(&self) {
        self.held.send_replace(false);
    }

    /// How many connections it has accepted.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

/// Copies in both directions until both have ended.
async fn pass_on(client: &mut TcpStream, server: &mut TcpStream, holds: &mut watch::Receiver<bool>) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.split(), server.split());
    let asks = async {
        _ = copy(&mut from_client, &mut to_server).await;
        _ = to_server.shutdown().await;
    };
    let answers = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            _ = holds.wait_for(|held| !held).await;
            if to_client.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
        _ = to_client.shutdown().await;
    };
    tokio::join!(asks, answers);
}
