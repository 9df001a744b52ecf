//! A wire between Doorward and a real server, which can be cut and mended.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Ends with its owner.
pub struct Wire {
    address: SocketAddr,
    whole: watch::Sender<bool>,
    /// Connections up to this one pass nothing on.
    silent: watch::Sender<usize>,
    taken: Arc<AtomicUsize>,
}

impl Wire {
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ((whole, watched), (silent, silenced)) = (watch::channel(true), watch::channel(0));
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&taken);
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
                let (mut watched, mut silenced) = (watched.clone(), silenced.clone());
                if !*watched.borrow() {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    let cut = async { _ = watched.wait_for(|whole| !whole).await };
                    // Both ends stay open, and hear nothing.
                    let pass = async {
                        tokio::select! {
                            _ = copy_bidirectional(&mut client, &mut server) => {}
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
        Self { address, whole, silent, taken }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections, and takes no others.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// Passes nothing on any more of the connections that there are, and does not say so. Others are as before.
    pub fn silence(&self) {
        self.silent.send_replace(self.taken.load(Ordering::SeqCst));
    }

    /// How many connections it was asked for.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}
