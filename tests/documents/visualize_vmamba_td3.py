#!/usr/bin/env python3
# visualize_vmamba_td3.py

import torch
import numpy as np  # added: the second function uses it
import matplotlib.pyplot as plt
import seaborn as sns
from rl.vmamba_td3.published import make_agent  # changed: was `from algorithm.vmamba_td3.vmamba_td3 import make_agent`
from envs import classic_gym as gym  # changed: was `import gym`
from config import get_config  # added: as the other script has it

def visualize_attention_weights(model_path):
    """可视化注意力权重"""
    
    # 加载模型
    env = gym.make("AirSimEnv-v42")
    obs = env.reset()
    args = get_config()
    agent = make_agent(env, obs, args)
    agent.load(model_path)
    
    # 获取注意力权重
    with torch.no_grad():
        base_seq = torch.as_tensor(obs["base"], dtype=torch.float32).unsqueeze(0)
        depth_seq = torch.as_tensor(obs["depth"], dtype=torch.float32).unsqueeze(0)
        
        # 修改CrossAttention以返回注意力权重
        attention_weights = agent.actor_mamba.cross_attn.get_attention_weights(
            agent.actor_mamba.temporal(agent.actor_mamba.fusion(
                agent.actor_visual_encoder(depth_seq.view(-1, *depth_seq.shape[2:])).view(1, -1, 128),
                agent.actor_state_encoder(base_seq)
            ))
        )
    
    # 可视化
    plt.figure(figsize=(10, 6))
    sns.heatmap(attention_weights.squeeze().cpu().numpy(), 
                cmap='Blues', annot=True)
    plt.title('Cross-Attention Weights (History Importance)')
    plt.xlabel('Time Steps')
    plt.ylabel('Current Step')
    plt.show()

def visualize_feature_evolution(model_path, num_steps=100):
    """可视化特征演化"""
    
    env = gym.make("AirSimEnv-v42")
    obs = env.reset()
    args = get_config()
    agent = make_agent(env, obs, args)
    agent.load(model_path)
    
    # 记录特征演化
    visual_features = []
    state_features = []
    context_features = []
    
    for step in range(num_steps):
        action = agent.select_action(obs["base"], obs["depth"], noise=False)
        next_obs, reward, done, info = env.step(action)
        
        # 提取特征
        with torch.no_grad():
            base_seq = torch.as_tensor(obs["base"], dtype=torch.float32).unsqueeze(0)
            depth_seq = torch.as_tensor(obs["depth"], dtype=torch.float32).unsqueeze(0)
            
            visual_feat = agent.actor_visual_encoder(
                depth_seq.view(-1, *depth_seq.shape[2:])
            ).view(1, -1, 128)
            
            state_feat = agent.actor_state_encoder(base_seq)
            context_feat = agent.actor_mamba(visual_feat, state_feat)
            
            visual_features.append(visual_feat.mean(dim=1).cpu().numpy())
            state_features.append(state_feat.mean(dim=1).cpu().numpy())
            context_features.append(context_feat.cpu().numpy())
        
        if done:
            obs = env.reset()
        else:
            obs = next_obs
    
    # 可视化
    visual_features = np.concatenate(visual_features)  # changed: was `visual_features = np.array(visual_features)`; a plot takes no third axis
    state_features = np.concatenate(state_features)  # changed: was `state_features = np.array(state_features)`
    context_features = np.concatenate(context_features)  # changed: was `context_features = np.array(context_features)`
    
    fig, axes = plt.subplots(3, 1, figsize=(15, 10))
    
    # 视觉特征演化
    axes[0].plot(visual_features[:, :10])  # 前10个维度
    axes[0].set_title('Visual Features Evolution')
    axes[0].set_xlabel('Time Step')
    axes[0].set_ylabel('Feature Value')
    
    # 状态特征演化
    axes[1].plot(state_features[:, :10])
    axes[1].set_title('State Features Evolution')
    axes[1].set_xlabel('Time Step')
    axes[1].set_ylabel('Feature Value')
    
    # 上下文特征演化
    axes[2].plot(context_features[:, :10])
    axes[2].set_title('Context Features Evolution')
    axes[2].set_xlabel('Time Step')
    axes[2].set_ylabel('Feature Value')
    
    plt.tight_layout()
    plt.show()

if __name__ == "__main__":
    model_path = "models/vmamba_td3_final.pth"
    
    print("Visualizing attention weights...")
    visualize_attention_weights(model_path)
    
    print("Visualizing feature evolution...")
    visualize_feature_evolution(model_path)
