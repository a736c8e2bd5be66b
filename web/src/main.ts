import { mount } from 'svelte';
import './style/base.css';
import './style/layout.css';
import './style/thread.css';
import './style/forms.css';
import App from './ui/App.svelte';

mount(App, { target: document.getElementById('app')! });
